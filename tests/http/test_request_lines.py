"""Every line that one request writes carries its id, whichever thread writes it."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.settings import Settings
from service.telemetry import configure_logging
from tests import worlds
from tests.built import BuiltWorld
from tests.conftest import SetClock

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the dialect plays no part


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", database_url=database_url, poll_interval=0.05, threads=1)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_rollback_logs_from_its_worker_thread_under_the_requests_id(
    built_world: BuiltWorld, app: FastAPI, clock: SetClock, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("INFO", json=True)
    built_world.copy_into(app.state.services.database, settings.artifacts_dir)
    key = app.state.services.access.create("tests", frozenset({"admin"}), actor="cli").token
    with TestClient(app, headers={"Authorization": f"Bearer {key}"}) as client:
        worlds.eventually(lambda: app.state.services.serving().settled, 60)
        capsys.readouterr()
        reply = client.post(
            "/v1/admin/adapters/rollback", json={"to_version": "base"}, headers={"X-Request-ID": "click-7"}
        )
        assert reply.status_code == 200
        assert reply.headers["X-Request-ID"] == "click-7"
    written = {line["event"]: line.get("request_id") for line in lines(capsys)}
    assert written["pointer_moved"] == "click-7"  # by the thread that runs the route
    assert written["request_served"] == "click-7"  # by the event loop


def test_requests_that_run_at_one_time_keep_their_ids_apart(app: FastAPI, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", json=True)

    @app.get("/thread")
    def in_a_worker_thread(number: int) -> str:
        structlog.get_logger("tests").info("worked", number=number)
        return "done"

    with TestClient(app) as client, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: client.get(f"/thread?number={n}", headers={"X-Request-ID": f"r-{n}"}), range(40)))
    worked = [line for line in lines(capsys) if line["event"] == "worked"]
    assert len(worked) == 40
    assert [line for line in worked if line["request_id"] != f"r-{line['number']}"] == []
