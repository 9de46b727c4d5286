"""What a trial costs those who are being answered: the same load without one, beside a canary, beside a shadow.

The real server; every reply is compared with the answer of the version that it names.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.errors import Unavailable
from trainer.bench_service import LIMIT, EngineAlone, plan_for
from trainer.bench_shop import Server, ShopSize, build_shop, drive, serving

LOADED = "adaptide_trial_loaded"
STORED = 'adaptide_shadow_rankings_total{outcome="stored"}'
WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class TrialRow:
    """trial: off, canary or shadow, on a share of users. failed: not 200 or not personalised. wrong: not what the named
    version answers. candidate: replies by the candidate. shadowed: requests that it ranked for nobody. resident_mib: of
    the server after the run."""

    trial: str
    share: float
    rate: float
    requests: int
    p50_ms: float
    p99_ms: float
    failed: int
    wrong: int
    candidate: int
    shadowed: int
    resident_mib: float


def bench_trial(
    size: ShopSize, load: float, threads: int, seconds: float, share: float, repeats: int
) -> list[TrialRow]:
    """load: requests a second as a share of what the engine alone does one by one; share: of users in the canary, all
    are in the shadow."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="adaptide-bench-") as folder:
        shop = build_shop(Path(folder), size, LIMIT)
        own = EngineAlone(shop, threads)
        with serving(shop, own.threads) as server:
            rate = load * own.per_second(1)
            plan = plan_for(shop, server, seconds, rate=rate)
            for _ in range(repeats):
                for kind, part in (("off", 0.0), ("canary", share), ("shadow", 1.0)):
                    _set(server, kind, shop.versions[1], part)
                    before = server.metric(STORED)
                    run = drive(plan)
                    good = [one for one in run.replies if one.status == 200 and one.strategy == "personalised"]
                    p50, p99 = np.percentile([one.latency_ms for one in run.replies], (50, 99)).tolist()
                    rows.append(
                        TrialRow(
                            trial=kind,
                            share=part,
                            rate=rate,
                            requests=len(run.replies),
                            p50_ms=p50,
                            p99_ms=p99,
                            failed=len(run.replies) - len(good),
                            wrong=sum(not own.right(one) for one in good),
                            candidate=sum(one.version == shop.versions[1] for one in good),
                            shadowed=int(server.metric(STORED) - before),
                            resident_mib=server.resident_mib(),
                        )
                    )
    return rows


def _set(server: Server, kind: str, version: str, share: float) -> None:
    """Raises Unavailable when the server does not follow in time."""
    server.set_trial(None if kind == "off" else {"adapter_version": version, "kind": kind, "share": share})
    deadline = time.monotonic() + WITHIN_S
    while server.metric(LOADED) != float(kind != "off"):
        if time.monotonic() > deadline:
            raise Unavailable("the server did not follow the trial in time")
        time.sleep(0.05)
    time.sleep(1.0)  # a change of the kind alone is followed by the next poll
