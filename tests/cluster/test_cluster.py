"""Replicas behind the balancer and elected updaters: what dies is not missed. Swaps: tests/chaos/test_swaps.py."""

import signal
import time

import httpx
import pytest

from service.windows.repository import Window
from tests import worlds
from tests.cluster.cluster import DRAIN_S, LEASE_S, REPLICAS, Cluster, Process
from tests.cluster.traffic import Referee, Traffic

pytestmark = [pytest.mark.e2e, pytest.mark.postgres, pytest.mark.timeout(600)]

by_the_store = pytest.mark.parametrize("running", ["polling"], indirect=True)
"""Of what the database alone decides."""
TRAINED_S = 60.0  # an update of this small world, on a machine that is busy


def traffic(cluster: Cluster) -> Traffic:
    return Traffic(cluster.address, cluster.headers)


def admin(cluster: Cluster) -> httpx.Client:
    return httpx.Client(base_url=cluster.address, headers=cluster.headers, timeout=10)


def test_a_replica_that_is_stopped_is_drained_first_and_no_request_is_lost(cluster: Cluster, referee: Referee) -> None:
    for host in REPLICAS[:2]:
        with traffic(cluster) as seen:
            seen.run_for(0.5)
            cluster.replicas[host].signal(signal.SIGTERM)
            began = time.monotonic()
            draining = cluster.until(f"{host} drains", lambda host=host: _draining(cluster, host), DRAIN_S)
            assert draining.headers["Connection"] == "close"
            assert cluster.replicas[host].wait(25) == 0
            assert time.monotonic() - began >= DRAIN_S
            cluster.names.addresses.remove(host)
            seen.run_for(0.5)
        assert seen.failures == []
        assert len(seen.replies) > 0
        referee.assert_right(seen.replies)
        referee.assert_stored_once(seen.acknowledged)
    cluster.heal()  # both are found again under their old addresses


def _draining(cluster: Cluster, host: str) -> httpx.Response | None:
    reply = cluster.direct(host).get("/health/ready")
    return reply if (reply.status_code, reply.json()["status"]) == (503, "draining") else None


def test_a_replica_that_is_killed_costs_no_request(cluster: Cluster, referee: Referee) -> None:
    with traffic(cluster) as seen:
        seen.run_for(0.5)
        before = len(seen.replies)
        cluster.replicas[REPLICAS[0]].signal(signal.SIGKILL)  # and its name stays: only checks can tell
        seen.run_for(2)
    assert seen.failures == []
    assert len(seen.replies) > before
    referee.assert_right(seen.replies)
    referee.assert_stored_once(seen.acknowledged)


@by_the_store
def test_without_the_database_recommendations_go_on_behind_the_balancer(cluster: Cluster) -> None:
    for host in REPLICAS:
        assert cluster.served(host)  # so that each knows the key
    with admin(cluster) as client, cluster.without_database():
        cluster.until("no replica is ready", lambda: all(_unready(cluster, host) for host in REPLICAS) or None)
        until = time.monotonic() + 3
        replies = []
        while time.monotonic() < until or len(replies) < 2 * len(REPLICAS):
            reply = client.get("/v1/users/u59/recommendations")
            assert reply.status_code == 200, reply.text
            replies.append(reply.json())
        assert replies[-1]["fallback_reason"] is not None
        assert replies[-1]["items"]
        event = worlds.event("not-stored", "u59", "i00", worlds.START, "impression")
        refused = client.post("/v1/events", json={"events": [event]})
        assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
    cluster.heal()


def _unready(cluster: Cluster, host: str) -> bool:
    return cluster.direct(host).get("/health/ready").status_code == 503


@by_the_store
def test_another_updater_finishes_the_window_of_one_that_is_killed(cluster: Cluster) -> None:
    with admin(cluster) as client:
        window_id = cluster.close_window(client)
    worker = _stopped_at_work(cluster, window_id)
    worker.signal(signal.SIGKILL)
    cluster.until("another updater works on it", lambda: _taken_over(cluster, window_id), LEASE_S + 5)
    window = cluster.until("it has an outcome", lambda: _concluded(cluster, window_id), TRAINED_S)
    assert (window.verdict, window.attempts) == ("promoted", 2)
    assert cluster.outcomes(window_id) == (1, 1)


@by_the_store
def test_an_updater_that_was_paused_writes_nothing_when_it_goes_on(cluster: Cluster) -> None:
    with admin(cluster) as client:
        window_id = cluster.close_window(client)
        worker = _stopped_at_work(cluster, window_id)
        try:
            cluster.until("another updater works on it", lambda: _taken_over(cluster, window_id), LEASE_S + 5)
            concluded = cluster.until("it has an outcome", lambda: _concluded(cluster, window_id), TRAINED_S)
        finally:
            worker.signal(signal.SIGCONT)
        cluster.until("the paused one notices", lambda: _fenced(worker), TRAINED_S)
        assert cluster.window(window_id) == concluded
        assert cluster.outcomes(window_id) == (1, 1)

        following = cluster.close_window(client)
        after = cluster.until("the next has an outcome", lambda: _concluded(cluster, following), TRAINED_S)
    assert after.attempts == 1
    assert cluster.outcomes(following) == (1, 1)


def _stopped_at_work(cluster: Cluster, window_id: int) -> Process:
    """The updater that trains the window, held still in the middle of it."""
    worker = cluster.until("an updater works on it", lambda: cluster.worker_of(window_id), 15)
    worker.signal(signal.SIGSTOP)
    window = cluster.window(window_id)
    assert (window.state, window.attempts) == ("training", 1), "it was done too soon for this test"
    return worker


def _fenced(worker: Process) -> bool | None:
    """It found its lease or its claim gone, wherever in its work it was held."""
    return any(worker.said(f'"event":"{event}"') for event in ("window_left", "failure_not_recorded")) or None


def _taken_over(cluster: Cluster, window_id: int) -> bool | None:
    return cluster.window(window_id).attempts == 2 or None


def _concluded(cluster: Cluster, window_id: int) -> Window | None:
    window = cluster.window(window_id)
    return window if window.verdict is not None else None
