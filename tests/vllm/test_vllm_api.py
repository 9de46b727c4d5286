"""`ADAPTIDE_ENGINE=vllm adaptide serve`: the whole API over vLLM, as the real command."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from fastapi import FastAPI

from service.access.schemas import Scope
from service.kit import migrate
from service.kit.db import Database
from service.settings import Settings
from tests import worlds
from tests.built import BuiltWorld
from tests.recommend.shop import Shop, ids, ladder
from trainer.base import BuiltBase

STARTING_S = 400  # importing vLLM and starting its first engine, on a machine that does other things
SWAPPING_S = 60
SETTINGS: dict[str, Any] = {
    "engine": "vllm",
    "device": "cpu",
    "threads": 1,
    "vllm_kv_cache_gib": 0.25,
    "vllm_max_lora_rank": 8,
    "poll_interval": 0.05,
    "request_deadline": 60,  # an answer that is slow here is still to be the model's
    "beams": 64,  # more than there are items: the search must be exact
}


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """SQLite alone: what another store could change is the torch engine's tests' affair."""
    url = f"sqlite:///{tmp_path / 'adaptide.db'}"
    database = Database(url)
    migrate.upgrade(database)
    database.close()
    return url


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", database_url=database_url, log_level="INFO", **SETTINGS)


@pytest.fixture
def built(built_world: BuiltWorld, settings: Settings, database: Database) -> BuiltBase:
    return built_world.copy_into(database, settings.artifacts_dir)


class Serve:
    """`adaptide serve` over the test's store, in a process of its own."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        own = {f"ADAPTIDE_{name.upper()}": str(value) for name, value in SETTINGS.items()}
        own |= {"ADAPTIDE_HOME": str(settings.home), "ADAPTIDE_DATABASE_URL": settings.store_url}
        self._log = folder / "serve.log"
        with self._log.open("w") as log:
            line = [sys.executable, "-m", "trainer.cli", "serve", "--port", "0"]
            self.child = subprocess.Popen(line, env=os.environ | own, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.child.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", self.child.stdout.readline())
        assert found is not None, self.said()
        self.address = found[0]

    def said(self) -> str:
        return self._log.read_text()[-6000:]

    def lives(self) -> None:
        assert self.child.poll() is None, self.said()


@pytest.fixture
def serve(built: BuiltBase, settings: Settings, tmp_path: Path) -> Iterator[Serve]:
    started = Serve(settings, tmp_path)
    yield started
    started.child.kill()
    started.child.communicate()


@pytest.fixture
def shop(app: FastAPI, built: BuiltBase, serve: Serve) -> Iterator[Shop]:
    """The served process, and beside it an application that never starts: its services reach the same store."""
    services = app.state.services
    services.catalogue.refresh()
    key = services.access.create("tests", frozenset({Scope.ADMIN}), actor="cli").token
    with httpx.Client(base_url=serve.address, headers={"Authorization": f"Bearer {key}"}, timeout=90) as client:
        yield Shop(app, client, built)  # type: ignore[arg-type]  # it posts and reads, which both clients do alike


def check(shop: Shop, version: str, history: list[str]) -> None:
    """A reply of `version` has the referee's items in the referee's order, and its scores."""
    reply = shop.ask(history=history)
    assert reply["model"]["adapter_version"] == version
    assert ladder(reply) == ("personalised", None)
    expected = {item: score for item, score in shop.referee(version, history).items() if item not in history}
    assert ids(reply) == sorted(expected, key=lambda item: -expected[item])[:10]
    scores = [item["score"] for item in reply["items"]]
    np.testing.assert_allclose(scores, [expected[item] for item in ids(reply)], atol=1e-4)


def test_replies_are_the_referees_and_follow_the_adapter_through_the_registry(
    shop: Shop, built: BuiltBase, serve: Serve
) -> None:
    first, second = built.adapter_version, shop.adapter(seed=1)
    history = ["i03", "i04", "i05"]

    def serves(version: str | None) -> bool:
        serve.lives()
        return shop.served() == version

    worlds.eventually(lambda: serves(first), STARTING_S)
    check(shop, first, history)
    assert len(shop.client.get("/v1/users/u00/recommendations").json()["items"]) == 10

    revision = shop.client.get("/v1/admin/adapters").headers["ETag"]
    promoted = shop.client.post(f"/v1/admin/adapters/{second}/promote", headers={"If-Match": revision})
    assert promoted.status_code == 200, promoted.text
    worlds.eventually(lambda: serves(second), SWAPPING_S)
    check(shop, second, history)

    revision = f'"{promoted.json()["revision"]}"'
    rolled_back = shop.client.post("/v1/admin/adapters/rollback", headers={"If-Match": revision})
    assert rolled_back.status_code == 200, rolled_back.text
    worlds.eventually(lambda: serves(first), SWAPPING_S)
    check(shop, first, history)

    sockets = psutil.Process(serve.child.pid).net_connections("tcp")
    assert {socket.laddr.ip for socket in sockets} <= {"127.0.0.1", "::1"}  # vLLM listens to nobody else

    bad = shop.adapter(seed=2)
    shop.damage(bad)
    shop.point_at(bad)
    worlds.eventually(lambda: "degraded" in shop.client.get("/health/ready").text, SWAPPING_S)
    check(shop, first, history)

    serve.child.send_signal(signal.SIGTERM)
    assert serve.child.wait(60) == 0, serve.said()


def test_it_can_be_stopped_while_vllm_is_still_starting(shop: Shop, serve: Serve) -> None:
    def answers() -> bool:
        serve.lives()
        try:
            return shop.client.get("/health/live").status_code == 200
        except httpx.TransportError:
            return False

    worlds.eventually(answers, STARTING_S)
    reply = shop.client.post("/v1/recommendations", json={"user_id": "u00"}).json()
    assert reply["strategy"] in ("popular", "personalised")  # nobody waits for it
    serve.child.send_signal(signal.SIGTERM)
    assert serve.child.wait(60) == 0, serve.said()
