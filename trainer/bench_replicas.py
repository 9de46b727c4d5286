"""What more replicas bring: the same load for each of 1..N servers over one store, every reply checked.

All servers run all the time and are driven in turns, so that whatever else the machine does falls on each count.
"""

import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.kit.machine import cores
from trainer.bench_service import LIMIT, EngineAlone, plan_for
from trainer.bench_shop import BenchShop, Server, ShopSize, build_shop, drive, serving
from trainer.bench_stores import empty_store
from trainer.load import Run


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """`replicas` servers with `clients` closed loops each; medians over repeats.

    ratio: requests_per_s over that of the fewest replicas, in the same turn. cores: that this process may use, for
    servers, store and clients together. client_cpu: of one core, all load generators. errors: replies other than 200.
    wrong: not the engine's own items and scores, or not personalised.
    """

    store: str
    replicas: int
    cores: int
    threads: int
    clients: int
    requests: int
    requests_per_s: float
    ratio: float
    p50_ms: float
    p99_ms: float
    client_cpu: float
    errors: int
    wrong: int


def bench_replicas(
    server: str | None,
    size: ShopSize,
    counts: Sequence[int],
    *,
    clients: int,
    threads: int,
    seconds: float,
    repeats: int,
) -> list[ReplicaRow]:
    """server: see bench_stores.empty_store. threads: of each replica."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="adaptide-bench-"))
        database = stack.enter_context(empty_store(server))
        url = database.url.render_as_string(hide_password=False)
        shop = build_shop(Path(folder), size, LIMIT, url)
        own = EngineAlone(shop, threads)
        replicas = [stack.enter_context(serving(shop, threads)) for _ in range(max(counts))]
        turns = [[_driven(shop, replicas[:count], seconds, clients) for count in counts] for _ in range(repeats)]
    rows = []
    for place, count in enumerate(counts):
        runs = [turn[place] for turn in turns]
        latencies = [
            [reply.latency_ms for run in turn for reply in run.replies if reply.status == 200] for turn in runs
        ]
        replies = [reply for turn in runs for run in turn for reply in run.replies]
        rows.append(
            ReplicaRow(
                store=database.dialect,
                replicas=count,
                cores=cores(),
                threads=threads,
                clients=clients,
                requests=len(replies),
                requests_per_s=statistics.median(_per_second(turn) for turn in runs),
                ratio=statistics.median(_per_second(turn[place]) / max(1e-9, _per_second(turn[0])) for turn in turns),
                p50_ms=statistics.median(float(np.percentile(own_turn or [0.0], 50)) for own_turn in latencies),
                p99_ms=statistics.median(float(np.percentile(own_turn or [0.0], 99)) for own_turn in latencies),
                client_cpu=statistics.median(sum(run.busy for run in turn) for turn in runs),
                errors=sum(reply.status != 200 for reply in replies),
                wrong=sum(reply.status == 200 and not own.right(reply) for reply in replies),
            )
        )
    return rows


def _driven(shop: BenchShop, replicas: Sequence[Server], seconds: float, clients: int) -> list[Run]:
    """One load generator for each replica, all at once: what a balancer would spread evenly, without its own cost."""
    with ThreadPoolExecutor(len(replicas)) as pool:
        return list(pool.map(lambda one: drive(plan_for(shop, one, seconds, concurrency=clients)), replicas))


def _per_second(runs: Sequence[Run]) -> float:
    return sum(run.per_second for run in runs)
