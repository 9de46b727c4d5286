"""What the real server answers over HTTP, beside what its engine does alone at the same batch size.

Server and engine run in turns on the same shop, so that whatever else the machine does falls on both. Every reply is
compared with the engine's own answer for the same user.
"""

import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.generation.threads import choose_threads
from service.generation.torch_engine import TorchModel
from trainer.bench_shop import BenchShop, Server, ShopSize, build_shop, drive, serving
from trainer.load import Plan, Reply, Run

LIMIT = 10
TOLERANCE = 1e-3  # of a score, a sum of four log-probabilities in float32: rounding differs with the batch
BATCHES = "adaptide_generation_batch_requests"


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """One concurrency of a closed loop, or one rate of an open loop (then concurrency is the most open connections).

    Medians over repeats; p50 and p99 within each. engine_*: the engine alone, in batches of `engine_batch`. added_ms:
    p50 less the engine's. share: requests_per_s over the engine's. batch: requests that the server generated together,
    on average. server_cpu_ms, engine_cpu_ms: CPU for one request. client_cpu: of one core, the load generator.
    errors: replies other than 200. wrong: not the engine's own items and scores, or not personalised.
    """

    loop: str
    concurrency: int
    rate: float | None
    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    wrong: int
    engine_batch: int
    engine_requests_per_s: float
    engine_ms: float
    added_ms: float
    share: float
    p99_over_p50: float
    batch: float
    server_cpu_ms: float
    engine_cpu_ms: float
    client_cpu: float
    threads: int


@dataclass(frozen=True, slots=True)
class Alone:
    """The engine by itself. ms: median of a search, cpu_ms: its CPU, both of the whole batch."""

    ms: float
    cpu_ms: float


@dataclass(frozen=True, slots=True)
class _Turn:
    """The server under one plan, and the engine alone right before it."""

    run: Run
    batch: float
    cpu_s: float
    engine: "Alone"


def bench_service(
    size: ShopSize, concurrencies: Sequence[int], rates: Sequence[float], threads: int, seconds: float, repeats: int
) -> list[ServiceRow]:
    """rates: open loops, each a share of the highest throughput of the closed ones. threads 0: chosen as by serve."""
    with tempfile.TemporaryDirectory(prefix="adaptide-bench-") as folder:
        shop = build_shop(Path(folder), size, LIMIT)
        own = EngineAlone(shop, threads)
        with serving(shop, own.threads) as server:
            rows = []
            for concurrency in concurrencies:
                plan = plan_for(shop, server, seconds, concurrency=concurrency)
                rows.append(_row(own, concurrency, _turns(own, server, plan, concurrency, repeats)))
            most = max((row.requests_per_s for row in rows), default=own.per_second(LIMIT))
            for share in rates:
                plan = plan_for(shop, server, seconds, rate=share * most)
                rows.append(_row(own, None, _turns(own, server, plan, 1, repeats), plan.rate))
            return rows


class EngineAlone:
    """The served model in this process, and its own answer for every user, one at a time."""

    def __init__(self, shop: BenchShop, threads: int) -> None:
        self._shop = shop
        engine = shop.engine(threads)
        self.models = [shop.model(engine, which) for which in range(len(shop.versions))]
        anyone = next(iter(shop.requests.values()))
        self.threads = threads or choose_threads(lambda: self.models[0].generate([anyone], shop.index.trie))
        self._answers = {
            version: {user: self._answer(model, user) for user in shop.requests}
            for version, model in zip(shop.versions, self.models, strict=True)
        }

    def _answer(self, model: TorchModel, user: str) -> tuple[list[str], list[float]]:
        found = model.generate([self._shop.requests[user]], self._shop.index.trie)[0]
        rows = [int(self._shop.index.trie.rows_of(leaf)[0]) for leaf in found.leaves.tolist()]
        return [self._shop.index.items[row].item_id for row in rows], found.scores.tolist()

    def right(self, reply: Reply) -> bool:
        """Whether the reply is what the version that it names answers; items of one score may stand in any order."""
        if reply.strategy != "personalised" or reply.version not in self._answers:
            return False
        items, scores = self._answers[reply.version][reply.user]
        if len(reply.items) != len(items) or not np.allclose(reply.scores, scores, rtol=0, atol=TOLERANCE):
            return False
        named = dict(zip(items, scores, strict=True))
        return all(
            abs(named.get(item, scores[-1]) - score) < TOLERANCE
            for item, score in zip(reply.items, reply.scores, strict=True)
        )

    def measure(self, batch: int, at_least: float) -> Alone:
        """Searches for `batch` users, again and again for `at_least` seconds."""
        random = np.random.default_rng(0)
        users = list(self._shop.requests)
        taken: list[float] = []
        cpu = 0.0
        while sum(taken) < at_least or len(taken) < 3:
            chosen = [self._shop.requests[users[i]] for i in random.integers(0, len(users), batch)]
            began, cpu_began = time.perf_counter(), time.process_time()
            self.models[0].generate(chosen, self._shop.index.trie)
            taken.append(time.perf_counter() - began)
            cpu += time.process_time() - cpu_began
        return Alone(1000 * statistics.median(taken), 1000 * cpu / len(taken))

    def per_second(self, batch: int) -> float:
        return 1000 * batch / self.measure(batch, 1.0).ms


def plan_for(shop: BenchShop, server: Server, seconds: float, *, concurrency: int = 1, rate: float = 0.0) -> Plan:
    """For every user of the shop; a quarter of the time, a second at most, comes first and is not counted."""
    return Plan(
        host=server.host,
        port=server.port,
        token=shop.token,
        users=list(shop.requests),
        limit=LIMIT,
        seconds=seconds,
        concurrency=concurrency,
        rate=rate,
        warm_s=min(1.0, seconds / 4),
    )


def _turns(own: EngineAlone, server: Server, plan: Plan, batch: int, repeats: int) -> list[_Turn]:
    turns = []
    for _ in range(repeats):
        engine = own.measure(batch, plan.seconds / 2)
        asked, batches = (server.metric(f"{BATCHES}_{name}") for name in ("sum", "count"))
        cpu_s = server.cpu_s()
        run = drive(plan)
        cpu_s = server.cpu_s() - cpu_s
        asked, batches = server.metric(f"{BATCHES}_sum") - asked, server.metric(f"{BATCHES}_count") - batches
        turns.append(_Turn(run, asked / max(1.0, batches), cpu_s / max(1.0, asked), engine))
    return turns


def _row(own: EngineAlone, batch: int | None, turns: Sequence[_Turn], rate: float | None = None) -> ServiceRow:
    runs = [turn.run for turn in turns]
    good = [[reply.latency_ms for reply in run.replies if reply.status == 200] for run in runs]
    p50s, p99s = ([float(np.percentile(own or [0.0], q)) for own in good] for q in (50, 99))
    size = batch or 1
    engine_ms = [turn.engine.ms for turn in turns]
    engine_rates = [1000 * size / ms for ms in engine_ms]
    replies = [reply for run in runs for reply in run.replies]
    return ServiceRow(
        loop="closed" if batch else "open",
        concurrency=batch or max(run.most_connections for run in runs),
        rate=rate,
        requests=len(replies),
        requests_per_s=_median(run.per_second for run in runs),
        p50_ms=_median(p50s),
        p99_ms=_median(p99s),
        errors=sum(reply.status != 200 for reply in replies),
        wrong=sum(reply.status == 200 and not own.right(reply) for reply in replies),
        engine_batch=size,
        engine_requests_per_s=_median(engine_rates),
        engine_ms=_median(engine_ms),
        added_ms=_median(p50 - ms for p50, ms in zip(p50s, engine_ms, strict=True)),
        share=_median(run.per_second / alone for run, alone in zip(runs, engine_rates, strict=True)),
        p99_over_p50=_median(p99 / max(p50, 1e-9) for p50, p99 in zip(p50s, p99s, strict=True)),
        batch=_median(turn.batch for turn in turns),
        server_cpu_ms=_median(1000 * turn.cpu_s for turn in turns),
        engine_cpu_ms=_median(turn.engine.cpu_ms / size for turn in turns),
        client_cpu=_median(run.busy for run in runs),
        threads=own.threads,
    )


def _median(values: Iterable[float]) -> float:
    return float(statistics.median(values))
