"""Health and metrics: without a key, whatever state the store is in."""

import threading
import time
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.app import create_app
from service.errors import ConfigurationError
from service.health import PartState, Readiness, schema_check, store_check
from service.kit import migrate
from service.kit.db import Database
from service.settings import Settings


def test_all_is_well_without_a_key(client: TestClient) -> None:
    assert client.get("/health/live").json()["status"] == "live"
    ready = client.get("/health/ready")
    assert ready.status_code == 200
    assert ready.json()["parts"]["store"] == {"ready": True, "state": "ok", "detail": None}
    assert ready.json()["parts"]["schema"]["state"] == "ok"
    assert client.get("/health/startup").json()["status"] == "started"
    metrics = client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "adaptide_process_resident_memory_bytes" in metrics.text


def test_every_metric_is_ours(client: TestClient) -> None:
    names = {line.split()[2] for line in client.get("/metrics").text.splitlines() if line.startswith("# TYPE")}
    assert names
    assert all(name.startswith("adaptide_") for name in names)


def test_a_schema_of_another_version_is_not_ready_and_says_what_to_do(database: Database) -> None:
    migrate.downgrade(database, "base")
    state = schema_check(database)()
    assert (state.ready, state.state) == (False, "wrong_version")
    assert "adaptide db upgrade" in (state.detail or "")
    assert store_check(database)() == PartState(True, "ok")


def test_the_application_does_not_start_on_a_schema_of_another_version(settings: Settings, database: Database) -> None:
    migrate.downgrade(database, "base")
    with pytest.raises(ConfigurationError, match="adaptide db upgrade"), TestClient(create_app(settings)):
        pass


def test_a_store_that_is_not_there_is_not_ready() -> None:
    nowhere = Database("postgresql://nobody@127.0.0.1:1/none", lock_timeout_s=1)
    assert store_check(nowhere)().state == "unreachable"
    assert schema_check(nowhere)().state == "unknown"


def test_one_part_that_is_not_ready_makes_the_service_not_ready(app: FastAPI, client: TestClient) -> None:
    client.get("/health/startup")
    app.state.services.readiness.add("shelf", lambda: PartState(False, "warming", "a moment"))
    reply = client.get("/health/ready")
    assert reply.status_code == 503
    assert reply.headers["Retry-After"] == "1"
    assert reply.json()["status"] == "not_ready"
    assert reply.json()["parts"]["shelf"] == {"ready": False, "state": "warming", "detail": "a moment"}
    assert client.get("/health/startup").status_code == 200  # it had been ready


def test_a_part_that_only_answers_is_sent_to_by_a_balancer_without_a_choice(app: FastAPI, client: TestClient) -> None:
    app.state.services.readiness.add("shelf", lambda: PartState(False, "popular, degraded", "why", answers=True))
    assert client.get("/health/ready").status_code == 503
    assert client.get("/health/serving").status_code == 200
    assert client.get("/health/startup").status_code == 200


def test_startup_waits_for_the_first_time_that_all_is_ready(app: FastAPI, client: TestClient) -> None:
    answers = [PartState(False, "warming"), PartState(True, "personalised")]
    app.state.services.readiness.add("shelf", lambda: answers.pop(0))
    assert client.get("/health/startup").status_code == 503
    time.sleep(0.6)
    assert client.get("/health/startup").status_code == 200


def ask(readiness: Readiness, times: int = 1) -> list[dict[str, PartState]]:
    """The parts' states for `times` probes at once."""
    replies: list[dict[str, PartState]] = []

    async def probe() -> None:
        replies.append(await readiness.parts())

    async def probes() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(times):
                group.start_soon(probe)

    anyio.run(probes)
    return replies


def test_a_part_that_hangs_is_asked_once_and_does_not_hold_the_probe_up() -> None:
    asked: list[int] = []
    over = threading.Event()

    def hangs() -> PartState:
        asked.append(1)
        over.wait(60)
        return PartState(True, "ok")

    readiness = Readiness({"slow": hangs, "quick": lambda: PartState(True, "ok")}, timeout_s=0.1)
    replies = ask(readiness, times=5) + ask(readiness)
    over.set()
    assert len(asked) == 1
    assert {reply["slow"].state for reply in replies} == {"no_answer"}
    assert {reply["quick"].state for reply in replies} == {"ok"}


def test_probes_at_the_same_time_share_one_check() -> None:
    asked: list[Any] = []

    def part() -> PartState:
        asked.append(1)
        time.sleep(0.05)
        return PartState(True, "ok")

    replies = ask(Readiness({"part": part}), times=5)
    assert len(asked) == 1
    assert all(reply["part"].ready for reply in replies)


def test_a_check_that_crashes_is_a_part_that_is_not_ready() -> None:
    def crashes() -> PartState:
        raise RuntimeError("secret")

    [reply] = ask(Readiness({"part": crashes}))
    assert reply["part"] == PartState(False, "crashed", "see the server's log")


def test_a_process_that_drains_is_not_ready_but_answers_and_closes_its_connections(
    app: FastAPI, client: TestClient
) -> None:
    assert "Connection" not in client.get("/health/ready").headers
    app.state.services.readiness.drain()
    ready = client.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    assert ready.headers["Retry-After"] == "1"
    assert all(part["ready"] for part in ready.json()["parts"].values())
    live = client.get("/health/live")
    assert (live.status_code, live.headers["Connection"]) == (200, "close")
    assert client.get("/health/startup").status_code == 200


def test_without_a_store_a_process_is_serving_and_not_ready(app: FastAPI, client: TestClient) -> None:
    assert client.get("/health/serving").json()["status"] == "ready"
    app.state.services.readiness.add("store", lambda: PartState(False, "unreachable"))
    time.sleep(0.6)  # an answer is shared for half a second
    assert client.get("/health/ready").status_code == 503
    serving = client.get("/health/serving")
    assert serving.status_code == 200
    assert serving.json()["parts"].keys() == {"engine"}
    app.state.services.readiness.drain()
    assert client.get("/health/serving").status_code == 503
