"""The loop closed: a real server recommends, users take or do not, it is counted, and a bad adapter is taken back."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from service.access.schemas import Scope
from service.adapters import service as registry
from service.adapters.artifacts import ArtifactStore
from service.adapters.repository import NewAdapter
from service.adapters.states import AdapterState
from service.app import create_app
from service.kit.clock import utc_now
from service.kit.crash_points import VARIABLE, CrashPoint
from service.kit.db import Database
from service.quality import monitor
from service.quality.folding import QUALITY_LEASE
from service.quality.service import read_quality
from service.settings import Settings
from tests import worlds
from tests.built import BuiltWorld
from tests.conftest import SetClock
from tests.leases import run_out
from tests.quality.shown import Shop
from tests.serving import InThread, command
from trainer.quality import QualityWatch

pytestmark = pytest.mark.e2e

ASKED = 150
"""Recommendations of each adapter."""


class Visitors:
    """Users of the small world over HTTP: each takes the next item of the circle when it is recommended."""

    def __init__(self, client: httpx.Client, database: Database) -> None:
        self._client = client
        self._places = {
            f"u{user:02d}": [event for event in worlds.first_walks() if event["user_id"] == f"u{user:02d}"][-1]
            for user in range(worlds.USERS)
        }
        self._sent = 0

    def visit(self, count: int) -> dict[str, Any]:
        """So many recommendations, taken or not at once; what came of them as anybody could count it.

        A second of silence before and after keeps their buckets their own.
        """
        time.sleep(1)
        since, shown, hits, gain, versions = utc_now(), 0, 0, 0.0, set()
        while shown < count:
            for user, last in list(self._places.items())[: count - shown]:
                reply = self._client.get(f"/v1/users/{user}/recommendations", params={"limit": 5}).raise_for_status()
                body = reply.json()
                versions.add((body["model"] or {}).get("adapter_version"))
                wanted = worlds.item_id(int(last["item_id"][1:]) + 1)
                ranks = [item["rank"] for item in body["items"] if item["item_id"] == wanted]
                shown += 1
                if ranks:
                    hits, gain = hits + 1, gain + 1 / float(np.log2(ranks[0] + 1))
                    self._places[user] = self._take(user, wanted, body["recommendation_id"])
        [model] = versions
        time.sleep(1)
        return {"model": model, "hits": hits, "gain": gain, "since": _whole(since), "until": _whole(utc_now())}

    def _take(self, user: str, item: str, recommendation_id: str) -> dict[str, Any]:
        self._sent += 1
        event = worlds.event(f"taken-{self._sent}", user, item, utc_now(), recommendation_id=recommendation_id)
        report = self._client.post("/v1/events", json={"events": [event]}).raise_for_status().json()
        assert report["accepted"] == 1
        return event


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """What is recommended within a second is counted as soon as a minute later; nothing controls for the time."""
    return Settings(
        home=tmp_path / "home",
        database_url=database_url,
        threads=1,
        poll_interval=timedelta(seconds=0.1),
        request_deadline=timedelta(seconds=30),
        database_answer_timeout=timedelta(seconds=10),
        quality_horizon=timedelta(minutes=1),
        quality_bucket=timedelta(seconds=1),
        quality_lateness=timedelta(0),
        rollback_automatic=True,
        rollback_uncontrolled=True,
        rollback_min_recommendations=100,
    )


@pytest.fixture
def server(settings: Settings, database: Database, built_world: BuiltWorld) -> Iterator[InThread]:
    built_world.copy_into(database, settings.artifacts_dir)
    server = InThread(create_app(settings))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def client(server: InThread) -> Iterator[httpx.Client]:
    token = server.app.state.services.access.create("tests", frozenset({Scope.ADMIN}), actor="cli").token
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {token}"}, timeout=60) as client:
        yield client


def _whole(moment: datetime) -> str:
    """The second that it lies in."""
    return moment.replace(microsecond=0).isoformat()


def serves(client: httpx.Client, version: str) -> bool:
    reply = client.get("/v1/users/u00/recommendations", params={"limit": 1}).json()
    return (reply["model"] or {}).get("adapter_version") == version


def spoil(database: Database, settings: Settings, good: str, folder: Path) -> str:
    """A registered adapter with the shapes of a good one and noise for weights, as loud as is allowed; its version."""
    artifacts = ArtifactStore(settings.artifacts_dir)
    shutil.copytree(settings.artifacts_dir / "adapters" / good, folder)
    (folder / "manifest.json").unlink()
    weights = load_file(folder / "adapter_model.safetensors")
    random = np.random.default_rng(5)
    save_file(
        {name: random.normal(0, 0.4, one.shape).astype(np.float32) for name, one in weights.items()},
        folder / "adapter_model.safetensors",
    )
    base_id = registry.read_registry(database).pointer.base_id
    assert base_id is not None
    made = artifacts.publish_adapter(folder, {"base_id": base_id}, 99)
    registry.register_adapter(database, utc_now, NewAdapter(made.id, base_id, made.digest, "peso"), AdapterState.PASSED)
    return made.id


@pytest.mark.timeout(900)
def test_a_bad_adapter_is_found_out_by_what_users_take_and_is_taken_back(
    client: httpx.Client, database: Database, settings: Settings, tmp_path: Path
) -> None:
    good = registry.read_registry(database).pointer.adapter_version
    assert good is not None
    worlds.eventually(lambda: serves(client, good), 60)
    visitors = Visitors(client, database)
    before = visitors.visit(ASKED)
    bad = spoil(database, settings, good, tmp_path / "bad")
    client.post(f"/v1/admin/adapters/{bad}/promote", json={"reason": "a test"}).raise_for_status()
    worlds.eventually(lambda: serves(client, bad), 60)
    after = visitors.visit(ASKED)
    assert before["hits"] > 0.7 * ASKED
    assert after["hits"] < before["hits"] / 2

    later = SetClock(datetime.now(UTC) + timedelta(minutes=2))
    watch = QualityWatch(database, later, settings, ArtifactStore(settings.artifacts_dir), "tests")
    worlds.eventually(lambda: _looked(watch, client, good), 300)  # buckets, a few dozen at each look

    for seen in (before, after):
        shown = client.get("/v1/admin/quality", params={"since": seen["since"], "until": seen["until"]}).json()
        [found] = shown["models"]
        assert (found["model"], found["shown"], found["hits"]) == (seen["model"], ASKED, seen["hits"])
        assert found["hit_rate"] == seen["hits"] / ASKED
        assert found["gain"] == pytest.approx(seen["gain"] / ASKED, abs=1e-12)
    [entry] = [e for e in client.get("/v1/admin/audit").json()["entries"] if e["actor"] == monitor.ACTOR]
    assert (entry["action"], entry["subject"]) == ("adapter.rollback", good)
    assert (entry["details"]["from_version"], entry["details"]["to_version"]) == (bad, good)
    worlds.eventually(lambda: serves(client, good), 60)  # the replica follows by itself
    assert shown["watch"]["why"] == "the last move of the pointer was no promotion"


def _looked(watch: QualityWatch, client: httpx.Client, wanted: str) -> bool:
    watch.look()
    active: str = client.get("/v1/admin/adapters").json()["active"]["adapter_version"]
    return active == wanted


@pytest.mark.timeout(600)
def test_a_killed_count_is_made_again_and_nothing_is_counted_twice(shop: Shop, tmp_path: Path) -> None:
    recently = datetime.now(UTC) - timedelta(hours=1)
    for number in range(3):
        shop.show(f"u{number}", ["a"], recently + timedelta(seconds=number), model="a-1")
    url = shop.settings.database_url.get_secret_value()
    chosen = {"QUALITY_HORIZON": "600", "QUALITY_BUCKET": "60", "QUALITY_LATENESS": "0", "QUALITY_RETENTION": "P400D"}
    crash = {VARIABLE.removeprefix("ADAPTIDE_"): CrashPoint.COUNTING.value}
    line, environment = command(url, tmp_path / "home", "trainer", "run", **chosen, **crash)
    line[line.index("service.cli")] = "trainer.cli"
    killed = subprocess.run(line, env=environment | {"PYTHONWARNINGS": "default"}, capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    shop.settings = shop.settings.model_copy(update={"quality_bucket": timedelta(minutes=1)})
    assert read_quality(shop.database, shop.settings).counted_through is None

    run_out(shop.database, QUALITY_LEASE)
    assert shop.fold(datetime.now(UTC)) in (1, 2)  # buckets, where the minute ends among them
    [found] = read_quality(shop.database, shop.settings).models
    assert (found.counts.sums.shown, found.immature) == (3, 0)
