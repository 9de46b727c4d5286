"""RELIABILITY 14: a database that has stopped answering, its connections open, costs neither replies nor patience."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from sqlalchemy.engine import make_url
from starlette.testclient import TestClient

from service.access.schemas import Scope
from service.app import create_app
from service.kit.db import Database
from service.settings import Settings
from tests import worlds
from tests.built import BuiltWorld
from tests.conftest import PostgresStore, SetClock
from tests.proxies import PausableProxy, pausable

pytestmark = pytest.mark.postgres


@pytest.fixture
def proxy(_postgres: PostgresStore) -> Iterator[PausableProxy]:
    where = make_url(_postgres.url)
    with pausable(where.host or "127.0.0.1", where.port or 5432) as proxy:
        yield proxy
    _postgres.reset()


@pytest.fixture
def client(
    _postgres: PostgresStore, proxy: PausableProxy, built_world: BuiltWorld, tmp_path: Path, clock: SetClock
) -> Iterator[TestClient]:
    url = make_url(_postgres.url).set(host="127.0.0.1", port=proxy.port)
    settings = Settings(
        home=tmp_path, database_url=url.render_as_string(hide_password=False), log_level="WARNING", threads=1
    )
    direct = Database(_postgres.url)
    built_world.copy_into(direct, settings.artifacts_dir)
    direct.close()
    app = create_app(settings, clock=clock)
    with TestClient(app, raise_server_exceptions=False) as client:
        key = app.state.services.access.create("tests", frozenset({Scope.ADMIN}), actor="cli")
        client.headers["Authorization"] = f"Bearer {key.token}"
        worlds.eventually(lambda: client.get("/health/ready").is_success, 30)
        yield client
        proxy.go_on()


def post(client: TestClient, number: int) -> tuple[float, httpx.Response]:
    event = worlds.event(f"paused-{number}", "u01", worlds.item_id(number), worlds.START)
    started = time.monotonic()
    reply = client.post("/v1/events", json={"events": [event]})
    return time.monotonic() - started, reply


def ask(client: TestClient, user: str) -> httpx.Response:
    return client.post("/v1/recommendations", json={"user_id": user, "limit": 5})


@pytest.mark.timeout(120)
def test_recommendations_go_on_with_a_reason_and_events_are_refused_within_two_seconds(
    client: TestClient, proxy: PausableProxy
) -> None:
    assert ask(client, "u01").json()["strategy"] == "personalised"
    assert post(client, 0)[1].status_code == 202

    proxy.pause()
    with ThreadPoolExecutor(8) as pool:
        posted = [pool.submit(post, client, 1 + number % 3) for number in range(6)]
        replies = [pool.submit(ask, client, f"u{number:02d}") for number in range(6)]
        refused = [future.result() for future in posted]
        given = [future.result() for future in replies]
    later, at_once = post(client, 4)

    assert [reply.status_code for _, reply in refused] == [503] * 6
    assert max(seconds for seconds, _ in refused) < 2
    assert {reply.headers["Retry-After"] for _, reply in refused} == {"1"}
    assert [reply.status_code for reply in given] == [200] * 6
    assert {reply.json()["fallback_reason"] for reply in given} == {"store_unavailable"}
    assert all(len(reply.json()["items"]) == 5 for reply in given)
    assert (at_once.status_code, at_once.json()["slug"]) == (503, "store_unavailable")
    assert later < 1
    assert client.get("/health/ready").status_code == 503
    assert client.get("/health/live").status_code == 200

    proxy.go_on()
    worlds.eventually(lambda: post(client, 5)[1].status_code == 202, 10)
    worlds.eventually(lambda: ask(client, "u01").json()["strategy"] == "personalised", 10)
    for number in range(1, 5):  # whatever became of it meanwhile, sending it again counts it once
        body = post(client, number)[1].json()
        assert body["accepted"] + body["duplicates"] == 1
