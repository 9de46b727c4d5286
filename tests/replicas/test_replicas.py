"""An operator sees what each replica serves; one that stops is gone, one that was killed is late, then forgotten."""

import time
from datetime import timedelta

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.access.schemas import Scope
from service.adapters.activation import ActivationStatus
from service.kit.db import Database
from service.replicas import service
from service.replicas.service import FORGOTTEN_AFTER, Heartbeat
from tests.conftest import SetClock

PATH = "/v1/admin/replicas"
SECOND = timedelta(seconds=1)


class Serves:
    """What a replica would say of itself."""

    def __init__(self) -> None:
        self.status = ActivationStatus()

    def __call__(self) -> ActivationStatus:
        return self.status


@pytest.fixture
def serves() -> Serves:
    return Serves()


def test_a_row_says_what_serves_and_what_is_wanted(database: Database, clock: SetClock, serves: Serves) -> None:
    beat = Heartbeat(database, clock, SECOND, serves)
    beat.beat()
    [row] = service.read_all(database)
    assert (row.replica_id, row.started_at, row.base_id, row.wanted_base_id) == (beat.replica_id, clock(), None, None)
    began = clock()
    clock.advance(seconds=5)
    serves.status = ActivationStatus(
        settled=True, base_id="b", adapter_version="a1", revision=7, wanted_base_id="b", wanted_version="a1"
    )
    beat.beat()
    [row] = service.read_all(database)
    assert (row.started_at, row.seen_at, row.revision) == (began, clock(), 7)
    assert (row.base_id, row.adapter_version, row.wanted_base_id, row.wanted_version) == ("b", "a1", None, None)
    serves.status = ActivationStatus(
        base_id="b", adapter_version="a1", revision=8, wanted_base_id="b", wanted_version="a2", degraded="damaged"
    )
    beat.beat()
    [row] = service.read_all(database)
    assert (row.adapter_version, row.wanted_version, row.degraded) == ("a1", "a2", "damaged")


def test_a_replica_that_stops_signs_off_and_one_that_was_killed_is_forgotten(
    database: Database, clock: SetClock, serves: Serves
) -> None:
    killed, stopped = (Heartbeat(database, clock, SECOND, serves) for _ in range(2))
    killed.beat()
    clock.advance(seconds=1)
    stopped.start()
    deadline = time.monotonic() + 10
    while len(service.read_all(database)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stopped.stop()
    assert [row.replica_id for row in service.read_all(database)] == [killed.replica_id]
    clock.advance(seconds=FORGOTTEN_AFTER.total_seconds() + 1)
    next_one = Heartbeat(database, clock, SECOND, serves)
    next_one.beat()
    assert [row.replica_id for row in service.read_all(database)] == [next_one.replica_id]


def test_a_store_that_is_away_is_tried_again_and_holds_up_no_stop(clock: SetClock, serves: Serves) -> None:
    away = Database("postgresql://nobody@127.0.0.1:1/nothing")
    beat = Heartbeat(away, clock, timedelta(milliseconds=10), serves)
    beat.start()
    time.sleep(0.1)
    began = time.monotonic()
    beat.stop()
    assert time.monotonic() - began < 10
    away.close()


def test_an_admin_sees_this_replica_and_whether_one_is_late(
    app: FastAPI, admin: TestClient, clock: SetClock, serves: Serves
) -> None:
    database = app.state.services.database
    Heartbeat(database, lambda: clock() - timedelta(minutes=1), SECOND, serves).beat()
    deadline = time.monotonic() + 10
    while len(found := admin.get(PATH).json()["replicas"]) < 2:
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    assert [replica["late"] for replica in found] == [True, False]
    assert found[1].keys() == {
        "replica_id", "host", "process", "started_at", "seen_at", "late", "revision", "base_id", "adapter_version",
        "wanted_base_id", "wanted_version", "degraded", "trial_version", "trial_trouble",
    }  # fmt: skip


def test_only_admins_may(app: FastAPI, client: TestClient) -> None:
    assert client.get(PATH).status_code == 401
    key = app.state.services.access.create("reader", frozenset({Scope.READ, Scope.WRITE}), actor="cli")
    assert client.get(PATH, headers={"Authorization": f"Bearer {key.token}"}).status_code == 403
