"""Five times what the service can do: what it can do is still done, in time, and the rest is told so at once."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.built import BuiltWorld
from tests.chaos.scenarios import FULL, sized
from tests.chaos.served import HOST, LIMIT, USERS, Served, World, nursery
from tests.worlds import eventually
from trainer.bench_shop import drive
from trainer.load import Reply

pytestmark = [pytest.mark.scenario(15), pytest.mark.e2e]

DEADLINE_MS = 2000.0  # ADAPTIDE_REQUEST_DEADLINE
PATIENCE_S = 0.5  # ADAPTIDE_QUEUE_PATIENCE
CONCURRENCIES = (32, 64)  # of closed loops, whose clients come in flocks; more only wait longer
SHARES = (0.9, 1.0, 1.2)  # of what the best of those is served, offered by an open loop: it is served its most there
TIMES = 5


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, _sqlite_template: Path, built_world: BuiltWorld
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("overload")
    shutil.copy(_sqlite_template, folder / "adaptide.db")
    with nursery(folder) as made:
        world = World(made, folder, f"sqlite:///{folder / 'adaptide.db'}", built_world)
        with world.serve() as served:
            yield served
        world.close()


class Probes:
    """Milliseconds that /health/live took, and what admin and metrics said, while the block ran."""

    def __init__(self, served: Served) -> None:
        self.live: list[float] = []
        self.others: set[int] = set()
        self._served = served
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Probes":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(60)

    def _run(self) -> None:
        headers = {"Authorization": f"Bearer {self._served.token}"}
        with httpx.Client(base_url=f"http://{HOST}:{self._served.port}", headers=headers, timeout=30) as client:
            turn = 0
            while not self._done.wait(0.05):
                began = time.perf_counter()
                client.get("/health/live").raise_for_status()
                self.live.append(1000 * (time.perf_counter() - began))
                turn += 1
                if turn % 10 == 0:
                    self.others |= {client.get(path).status_code for path in ("/v1/admin/audit?limit=1", "/metrics")}


def in_time(replies: list[Reply], seconds: float) -> float:
    """Goodput: 200 within the deadline, a second."""
    return sum(reply.status == 200 and reply.latency_ms <= DEADLINE_MS for reply in replies) / seconds


def p99(replies: list[Reply]) -> float:
    return float(np.percentile([reply.latency_ms for reply in replies if reply.status == 200], 99))


@pytest.mark.timeout(sized(300, 3600))
def test_at_five_times_the_capacity_the_capacity_is_still_served(served: Served, figures: dict[str, Any]) -> None:
    measured, seconds = sized(1.0, 10.0), sized(5.0, 60.0)
    closed = [drive(served.plan(measured, concurrency=n, warm_s=0.5)) for n in CONCURRENCIES]
    assert {reply.status for run in closed for reply in run.replies} == {200}
    assert served.metric("adaptide_shed_requests_total") == 0  # nobody is turned away while there is room
    best = max(closed, key=lambda run: run.per_second)

    def most() -> float:
        """Goodput of an open loop at the rate that suits it best."""
        plans = [served.plan(measured, rate=share * best.per_second, warm_s=1.0) for share in SHARES]
        return max(in_time(drive(plan).replies, measured) for plan in plans)

    before = most()
    memory, threads = served.resident_mib(), served.threads()

    with Probes(served) as probes:
        run = drive(served.plan(seconds, rate=TIMES * best.per_second, warm_s=1.0))
    grown = served.resident_mib() - memory, served.threads() - threads

    # A virtual machine's cores are faster at one time than at another, so the capacity is that of before and after.
    after = most()
    capacity, usual_p99 = (before + after) / 2, p99(best.replies)
    goodput, accepted_p99 = in_time(run.replies, seconds), p99(run.replies)
    personal = sum(reply.strategy == "personalised" for reply in run.replies)
    figures |= {
        "closed_loop_per_s": [round(run.per_second) for run in closed],
        "capacity_per_s": [round(before), round(after)],
        "p99_at_capacity_ms": round(usual_p99),
        "offered_per_s": round(len(run.replies) / seconds),
        "goodput_per_s": round(goodput),
        "goodput_share": round(goodput / capacity, 2),
        "goodput_share_of_closed_loop": round(goodput / best.per_second, 2),
        "personalised": personal,
        "refused": sum(reply.status == 503 for reply in run.replies),
        "accepted_p99_ms": round(accepted_p99),
        "accepted_p99_ratio": round(accepted_p99 / usual_p99, 1),
        "refused_p50_ms": round(np.median([reply.latency_ms for reply in run.replies if reply.status == 503]), 1),
        "live_p99_ms": round(float(np.percentile(probes.live, 99))),
        "live_max_ms": round(max(probes.live)),
        "memory_grown_mib": round(grown[0]),
        "threads_grown": grown[1],
        "generator_cpu": round(run.busy, 2),
    }
    assert {reply.status for reply in run.replies} == {200, 503}
    assert personal > 0
    assert probes.others == {200}
    assert grown[0] <= 100
    if FULL:
        assert goodput >= 0.8 * capacity
        assert accepted_p99 <= 3 * usual_p99
        assert np.percentile(probes.live, 99) <= 100
    else:  # a machine that is busy with other tests shifts under the two measurements
        assert run.per_second >= 0.1 * capacity
        assert np.median(probes.live) <= 1000

    # and when it is over, it is over
    eventually(lambda: served.strategy() == "personalised", 10)
    time.sleep(2 * PATIENCE_S)
    shed = served.metric("adaptide_shed_requests_total")
    assert shed > 0
    usual = drive(served.plan(1.0, concurrency=8))
    assert {reply.status for reply in usual.replies} == {200}
    assert served.metric("adaptide_shed_requests_total") == shed


def test_a_refusal_says_when_to_come_back(served: Served) -> None:
    refused: list[httpx.Response] = []
    done = threading.Event()

    def look() -> None:
        with httpx.Client(base_url=f"http://{HOST}:{served.port}", headers=served.client.headers, timeout=30) as client:
            while not done.is_set():
                reply = client.post("/v1/recommendations", json={"user_id": USERS[0], "limit": LIMIT})
                if reply.status_code == 503:
                    refused.append(reply)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(5):  # on a busy machine the one that looks may ask too seldom
            drive(served.plan(2.0, concurrency=200))
            if refused:
                break
    finally:
        done.set()
        looking.join(60)
    assert refused
    assert {reply.json()["slug"] for reply in refused} == {"unavailable"}
    assert {reply.headers["Retry-After"] for reply in refused} <= {"1", "2", "3"}
