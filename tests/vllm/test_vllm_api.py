"""`ADAPTIDE_ENGINE=vllm`: the whole API over vLLM, in a test's process and as the real command."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.kit import migrate
from service.kit.db import Database
from service.settings import Settings
from tests import worlds
from tests.built import BuiltWorld
from tests.recommend.shop import Shop, ids, ladder
from trainer.base import BuiltBase

STARTING_S = 240  # importing vLLM and starting its first engine, on a machine that does other things
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
    return Settings(home=tmp_path / "home", database_url=database_url, log_level="WARNING", **SETTINGS)


@pytest.fixture
def built(built_world: BuiltWorld, settings: Settings, database: Database) -> BuiltBase:
    return built_world.copy_into(database, settings.artifacts_dir)


@pytest.fixture
def shop(built: BuiltBase, app: FastAPI, admin: TestClient) -> Shop:
    made = Shop(app, admin, built)
    worlds.eventually(lambda: made.served() == built.adapter_version, STARTING_S)
    return made


def check(shop: Shop, version: str | None, history: list[str]) -> None:
    """A reply of `version` has the referee's items in the referee's order, and its scores."""
    reply = shop.ask(history=history)
    assert reply["model"]["adapter_version"] == version
    assert ladder(reply) == ("personalised", None)
    expected = {item: score for item, score in shop.referee(version, history).items() if item not in history}
    assert ids(reply) == sorted(expected, key=lambda item: -expected[item])[:10]
    scores = [item["score"] for item in reply["items"]]
    np.testing.assert_allclose(scores, [expected[item] for item in ids(reply)], atol=1e-4)


def test_replies_are_the_referees_and_follow_the_adapter_through_the_registry(shop: Shop, built: BuiltBase) -> None:
    first, second = built.adapter_version, shop.adapter(seed=1)
    history = ["i03", "i04", "i05"]
    check(shop, first, history)

    shop.point_at(second)
    worlds.eventually(lambda: shop.served() == second, 20)
    check(shop, second, history)

    shop.point_at(first)
    worlds.eventually(lambda: shop.served() == first, 20)
    check(shop, first, history)

    bad = shop.adapter(seed=2)
    shop.damage(bad)
    shop.point_at(bad)
    worlds.eventually(lambda: "degraded" in str(shop.client.get("/health/ready").json()), 20)
    check(shop, first, history)


@pytest.fixture
def serve(settings: Settings, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts `adaptide serve` as a process over this test's store."""
    children: list[subprocess.Popen[str]] = []
    own = {f"ADAPTIDE_{name.upper()}": str(value) for name, value in SETTINGS.items()}
    own |= {"ADAPTIDE_HOME": str(settings.home), "ADAPTIDE_DATABASE_URL": settings.store_url}

    def start() -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "trainer.cli", "serve", "--port", "0"]
        with (tmp_path / "serve.log").open("w") as log:
            child = subprocess.Popen(line, env=os.environ | own, stdout=subprocess.PIPE, stderr=log, text=True)
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def test_the_command_serves_swaps_and_stops(
    serve: Callable[[], subprocess.Popen[str]], built: BuiltBase, settings: Settings, tmp_path: Path
) -> None:
    key = json.loads(
        subprocess.run(
            [sys.executable, "-m", "trainer.cli", "keys", "create", "--name", "t", "--scope", "admin", "--json"],
            env=os.environ | {"ADAPTIDE_HOME": str(settings.home), "ADAPTIDE_DATABASE_URL": settings.store_url},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )["token"]
    child = serve()
    assert child.stdout is not None
    found = re.search(r"http://127\.0\.0\.1:\d+", child.stdout.readline())
    assert found is not None, (tmp_path / "serve.log").read_text()[-4000:]
    with httpx.Client(base_url=found[0], headers={"Authorization": f"Bearer {key}"}, timeout=70) as client:

        def served() -> tuple[str, str | None]:
            assert child.poll() is None, (tmp_path / "serve.log").read_text()[-4000:]
            reply = client.get("/v1/users/u00/recommendations").json()
            return reply["strategy"], reply["model"]["adapter_version"] if reply["model"] else None

        until = time.monotonic() + STARTING_S
        while served() != ("personalised", built.adapter_version):
            assert time.monotonic() < until, (tmp_path / "serve.log").read_text()[-4000:]
            time.sleep(0.5)
        assert len(client.get("/v1/users/u00/recommendations").json()["items"]) == 10

    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 0, (tmp_path / "serve.log").read_text()[-4000:]
