"""What an adapter swap costs those who are being answered: the same load with and without swaps, every reply checked.

Swaps go through the registry over HTTP, to and fro between two adapters of one base, while requests arrive at random
times at a given rate.
"""

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.errors import Unavailable
from trainer.bench_service import LIMIT, EngineAlone, plan_for
from trainer.bench_shop import Server, ShopSize, build_shop, drive, serving
from trainer.load import Run

SERVED = "adaptide_served_revision"
SWAP_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class SwapRow:
    """One run: `quiet` the same load without swaps, right before. ratio: p99 during swaps over that.

    swap_ms: from the promotion until the new adapter was seen to serve (looked up every 50 ms), median. failed: replies
    other than 200 or not personalised. mixed: not what the version that the reply names answers. versions: replies by
    version. resident_mib: of the server, before the first swap and after the last.
    """

    swaps: int
    rate: float
    requests: int
    quiet_p50_ms: float
    quiet_p99_ms: float
    p50_ms: float
    p99_ms: float
    ratio: float
    swap_ms: float
    failed: int
    mixed: int
    versions: dict[str, int]
    resident_before_mib: float
    resident_after_mib: float


def bench_swap(
    size: ShopSize, swaps: int, load: float, threads: int, seconds_between: float, repeats: int
) -> list[SwapRow]:
    """load: requests a second as a share of what the engine alone does one by one."""
    with tempfile.TemporaryDirectory(prefix="adaptide-bench-") as folder:
        shop = build_shop(Path(folder), size, LIMIT)
        own = EngineAlone(shop, threads)
        with serving(shop, own.threads) as server:
            rate = load * own.per_second(1)
            with _swapping(server, shop.versions, 4, 0.0) as first:  # what is made once, such as buffers, is made now
                pass
            pause = max(seconds_between, 2 * max(first) / 1000)
            plan = plan_for(shop, server, swaps * pause, rate=rate)
            rows = []
            for _ in range(repeats):
                quiet = drive(plan)
                before = server.resident_mib()
                with _swapping(server, shop.versions, swaps, pause) as taken:
                    run = drive(plan)
                rows.append(_row(own, run, quiet, rate, taken, before, server.resident_mib()))
            return rows


@contextmanager
def _swapping(server: Server, versions: Sequence[str], swaps: int, pause: float) -> Iterator[list[float]]:
    """Promote to and fro beside the block, which ends when the last swap is served; yields the milliseconds of each.

    Raises Unavailable when a promotion fails or is not served in time.
    """
    taken: list[float] = []
    failures: list[Exception] = []

    def swap() -> None:
        try:
            for turn in range(swaps):
                began = time.perf_counter()
                # the first of `versions` serves before and after: swaps are even in number
                revision = server.promote(versions[(turn + 1) % 2])
                while server.metric(SERVED) < revision:
                    if time.perf_counter() - began > SWAP_WITHIN_S:
                        raise Unavailable("a promoted adapter was not served in time")
                    time.sleep(0.05)
                taken.append(1000 * (time.perf_counter() - began))
                time.sleep(max(0.0, pause - (time.perf_counter() - began)))
        except Exception as error:  # carried to the caller's thread
            failures.append(error)

    thread = threading.Thread(target=swap, name="swaps")
    thread.start()
    try:
        yield taken
    finally:
        thread.join()
    if failures:
        raise failures[0]


def _row(
    own: EngineAlone, run: Run, quiet: Run, rate: float, taken: Sequence[float], before: float, after: float
) -> SwapRow:
    good = [reply for reply in run.replies if reply.status == 200 and reply.strategy == "personalised"]
    found = [np.percentile([reply.latency_ms for reply in r.replies] or [0.0], (50, 99)) for r in (quiet, run)]
    (quiet_p50, quiet_p99), (p50, p99) = ((float(a), float(b)) for a, b in found)
    named = [reply.version for reply in good]
    return SwapRow(
        swaps=len(taken),
        rate=rate,
        requests=len(run.replies),
        quiet_p50_ms=quiet_p50,
        quiet_p99_ms=quiet_p99,
        p50_ms=p50,
        p99_ms=p99,
        ratio=p99 / max(quiet_p99, 1e-9),
        swap_ms=float(np.median(taken)),
        failed=len(run.replies) - len(good),
        mixed=sum(not own.right(reply) for reply in good),
        versions={str(version): named.count(version) for version in sorted(set(named), key=str)},
        resident_before_mib=before,
        resident_after_mib=after,
    )
