"""Scenario 9: swaps under steady load."""

import time
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from tests.chaos.scenarios import FULL, sized
from tests.cluster.cluster import REPLICAS, WITHIN_S, Cluster

if TYPE_CHECKING:
    from tests.cluster.traffic import Referee

PATH = "/v1/admin/adapters"


@pytest.mark.e2e
@pytest.mark.postgres
@pytest.mark.timeout(3600 if FULL else 600)
@pytest.mark.scenario(9)
def test_swaps_under_load_reach_every_replica_and_no_reply_mixes_versions(
    cluster: Cluster, adapters: tuple[str, str], referee: "Referee", figures: dict[str, Any]
) -> None:
    from tests.cluster.traffic import Traffic  # loads torch

    within = WITHIN_S[cluster.heard_by]
    turns = sized(10 if cluster.redis_url else 3, 50)
    with Traffic(cluster.address, cluster.headers) as calm:
        calm.run_for(sized(2, 30))
    reached: list[float] = []
    with (
        Traffic(cluster.address, cluster.headers) as seen,
        httpx.Client(base_url=cluster.address, headers=cluster.headers, timeout=10) as client,
    ):
        revisions = []
        for turn in range(turns):
            wanted = adapters[(turn + 1) % 2]
            revisions.append(client.post(f"{PATH}/{wanted}/promote").raise_for_status().json()["revision"])
            began = time.monotonic()
            for host in REPLICAS:
                cluster.until(
                    f"{host} serves {wanted} within {within:g} s",
                    lambda host=host, wanted=wanted: cluster.served(host) == wanted or None,
                    began + within - time.monotonic(),
                )
            reached.append(time.monotonic() - began)
    before, during = (float(np.quantile(traffic.seconds, 0.99)) for traffic in (calm, seen))
    figures |= {
        "heard_by": cluster.heard_by,
        "swaps": turns,
        "replies": len(seen.replies),
        "failures": len(calm.failures + seen.failures),
        "slowest_replica_s": round(max(reached), 2),
        "p99_ms_without": round(1000 * before, 1),
        "p99_ms_during": round(1000 * during, 1),
    }
    assert revisions == sorted(set(revisions))
    assert calm.failures + seen.failures == []
    assert referee.assert_right(seen.replies) == set(adapters)
    referee.assert_stored_once(calm.acknowledged + seen.acknowledged)
    if FULL:
        assert during <= 2 * before
