"""Starts that go wrong, with real processes: not ready before a model has answered, and the last good one serves."""

import contextlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from safetensors.numpy import load_file, save_file

from service.access.schemas import Scope
from service.access.service import AccessService
from service.adapters import integrity, signing
from service.adapters import service as registry
from service.adapters.artifacts import ADAPTERS, BASES, ArtifactStore
from service.adapters.contents import ADAPTER_WEIGHTS
from service.adapters.moves import MoveRequest
from service.adapters.repository import NewAdapter
from service.adapters.signatures import Keys
from service.adapters.states import AdapterState
from service.kit import migrate
from service.kit.clock import utc_now
from service.kit.db import Database
from tests import s3, worlds
from tests.built import BuiltWorld
from tests.cluster.nursery import Nursery

T = TypeVar("T")
Health = dict[str, Any]
Figures = dict[str, Any]
UP_S = 240.0  # beside much else

pytestmark = [pytest.mark.scenario(17), pytest.mark.timeout(900)]


@dataclass
class Replica:
    """A started `adaptide serve`; `log` is all that it said."""

    stage: "Stage"
    pid: int
    log: Path

    @property
    def address(self) -> str:
        def ask() -> str | None:
            found = re.search(r"http://127\.0\.0\.1:\d+", self.log.read_text(errors="replace"))
            return found[0] if found else None

        return self.until("it listens", ask)

    def health(self, kind: str) -> tuple[int, Health]:
        reply = httpx.get(f"{self.address}/health/{kind}", timeout=10)
        return reply.status_code, reply.json()

    def engine(self) -> Health:
        part: Health = self.health("ready")[1]["parts"]["engine"]
        return part

    def ask(self) -> Health:
        headers = {"Authorization": f"Bearer {self.stage.token}"}
        reply = httpx.get(f"{self.address}/v1/users/u00/recommendations", headers=headers, timeout=30)
        assert reply.status_code == 200, reply.text
        found: Health = reply.json()
        return found

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.address}/metrics", timeout=10).text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def until(self, what: str, ask: Callable[[], T | None]) -> T:
        deadline = time.monotonic() + UP_S
        while (answer := ask()) is None:
            said = self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""
            assert self.stage.nursery.status(self.pid) is None, f"it ended before {what}\n{said}"
            assert time.monotonic() < deadline, f"it is still not so that {what}\n{said}"
            time.sleep(0.05)
        return answer

    def until_ready(self) -> None:
        self.until("it is ready", lambda: self.health("ready")[0] == 200 or None)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, 9)


class Stage:
    """A store with two adapters that have served, the second one active, and processes over it."""

    def __init__(self, folder: Path, world: BuiltWorld, nursery: Nursery, artifacts: Path) -> None:
        self.folder, self.nursery, self.root = folder, nursery, artifacts
        self.url = f"sqlite:///{folder / 'adaptide.db'}"
        self.database = Database(self.url)
        migrate.upgrade(self.database)
        self.built = world.copy_into(self.database, artifacts)
        self.store = ArtifactStore(artifacts)
        self.token = AccessService(self.database, utc_now).create("tests", frozenset({Scope.ADMIN}), actor="cli").token
        self.first = self.built.adapter_version
        self.second = self.noisy(1)
        registry.promote(self.database, utc_now, self.store, self.second, MoveRequest("tests"))
        self._started: list[Replica] = []

    def noisy(self, seed: int) -> str:
        """A registered adapter that is the first one with noise."""
        random = np.random.default_rng(seed)
        with tempfile.TemporaryDirectory() as made:
            source = Path(made) / "adapter"
            shutil.copytree(self.root / ADAPTERS / self.first, source)
            (source / "manifest.json").unlink()
            tensors = load_file(source / ADAPTER_WEIGHTS)
            noise = {name: 0.05 * random.standard_normal(old.shape).astype(np.float32) for name, old in tensors.items()}
            save_file({name: old + noise[name] for name, old in tensors.items()}, source / ADAPTER_WEIGHTS)
            published = self.store.publish_adapter(source, {"base_id": self.built.base_id})
        new = NewAdapter(published.id, self.built.base_id, published.digest, "noise", trained_through=worlds.START)
        registry.register_adapter(self.database, utc_now, new, AdapterState.PASSED)
        return published.id

    def start(self, **settings: str) -> Replica:
        number = len(self._started)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ADAPTIDE_")}
        own = {
            "HOME": str(self.folder / f"home-{number}"),
            "DATABASE_URL": self.url,
            "ARTIFACTS_URL": str(self.root),
            "DATABASE_ANSWER_TIMEOUT": "10",
            "POLL_INTERVAL": "0.2",
            "REQUEST_DEADLINE": "15",
            "DEVICE": "cpu",
            "THREADS": "1",
        } | settings
        environment = kept | {f"ADAPTIDE_{name}": value for name, value in own.items()} | {"OMP_NUM_THREADS": "1"}
        log = self.folder / f"serve-{number}.log"
        log.touch()
        replica = Replica(self, self.nursery.start(["serve", "--port", "0"], environment, log), log)
        self._started.append(replica)
        return replica

    def ends(self, **settings: str) -> tuple[int | None, str]:
        """How a start that must fail ended, and what it said."""
        replica = self.start(**settings)
        return self.nursery.status(replica.pid, UP_S), replica.log.read_text()

    def damage(self, *parts: str) -> Callable[[], object]:
        """Flip the last bit of a published file; returns what repairs it."""
        path = self.root.joinpath(*parts)
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        return lambda: path.write_bytes(good)

    def close(self) -> None:
        for replica in self._started:
            replica.kill()
        self.database.close()


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("nursery") / "nursery.log")
    yield made
    made.close()


@pytest.fixture
def stage(tmp_path: Path, built_world: BuiltWorld, nursery: Nursery) -> Iterator[Stage]:
    made = Stage(tmp_path, built_world, nursery, tmp_path / "artifacts")
    yield made
    made.close()


def test_a_replica_whose_adapter_comes_slowly_is_not_ready_before_it_has_answered(
    tmp_path: Path, built_world: BuiltWorld, nursery: Nursery, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    arrived, let_it_come = threading.Event(), threading.Event()
    with s3.serving(tmp_path / "s3") as server:
        stage = Stage(tmp_path, built_world, nursery, server.bucket("shop") / "live")

        def meddle(method: str, path: str, body: bytes) -> s3.Answer:
            if method == "GET" and stage.second in path and ADAPTER_WEIGHTS in path:
                arrived.set()
                let_it_come.wait(UP_S)
            return None

        with s3.between(server, meddle) as url:
            s3.use(monkeypatch, url)
            replica = stage.start(ARTIFACTS_URL="s3://shop/live", ARTIFACTS_TIMEOUT="600")
            replica.until("it fetches the adapter", lambda: arrived.is_set() or None)
            probes = [(replica.health("ready"), replica.health("startup")[0], replica.ask()) for _ in range(5)]
            let_it_come.set()
            replica.until_ready()
            reply = replica.ask()
            stage.close()
    assert {ready[0] for ready, _, _ in probes} == {503}
    assert {ready[1]["parts"]["engine"]["state"] for ready, _, _ in probes} == {"loading"}
    assert {startup for _, startup, _ in probes} == {503}
    assert {early["strategy"] for _, _, early in probes} == {"popular"}, "who is asked all the same answers"
    assert (reply["strategy"], reply["model"]["adapter_version"]) == ("personalised", stage.second)
    figures |= {"probes_before": len(probes), "ready_among_them": 0}


def test_a_start_with_a_corrupt_adapter_serves_the_last_good_one_and_flags_it(stage: Stage, figures: Figures) -> None:
    repair = stage.damage(ADAPTERS, stage.second, ADAPTER_WEIGHTS)
    for _ in range(2):  # the second start knows from the store that it is corrupt
        replica = stage.start()
        replica.until_ready()
        part, reply = replica.engine(), replica.ask()
        assert part["state"] == "personalised, degraded"
        assert "sha256" in part["detail"]
        assert (reply["strategy"], reply["model"]["adapter_version"]) == ("personalised", stage.first)
        assert replica.metric("adaptide_serving_degraded") == 1
        assert replica.metric('adaptide_activations_total{outcome="degraded"}') == 1
        assert registry.read_adapter(stage.database, stage.second).adapter.state is AdapterState.CORRUPT
        if _ == 0:
            replica.kill()
    repair()
    integrity.verify(stage.database, utc_now, stage.store, stage.second, actor="tests")
    replica.until("the active one serves", lambda: replica.engine()["state"] == "personalised" or None)
    assert replica.ask()["model"]["adapter_version"] == stage.second
    assert replica.metric("adaptide_serving_degraded") == 0
    figures |= {"starts": 2, "served_the_last_good_one": 2}


def test_a_start_with_a_corrupt_base_is_not_ready_until_it_is_repaired(stage: Stage, figures: Figures) -> None:
    repair = stage.damage(BASES, stage.built.base_id, "model", "model.safetensors")
    replica = stage.start()
    replica.until("it has looked", lambda: replica.engine()["state"] != "loading" or None)
    assert replica.health("ready")[0] == 503
    part = replica.engine()
    assert (part["ready"], part["state"]) == (False, "popular, degraded")
    assert stage.built.base_id in part["detail"]
    assert replica.health("serving")[0] == 200, "a balancer with nobody else may send here"
    assert replica.ask()["strategy"] == "popular"
    repair()
    replica.until_ready()
    assert replica.ask()["model"]["adapter_version"] == stage.second
    figures |= {"ready_with_a_corrupt_base": 0}


def test_a_start_with_a_key_serves_nothing_that_is_not_signed_and_never_shows_it(
    stage: Stage, figures: Figures
) -> None:
    key = "0123456789abcdef" * 4
    replica = stage.start(SIGNING_KEY=key, LOG_LEVEL="DEBUG")
    replica.until("it has looked", lambda: replica.engine()["state"] != "loading" or None)
    assert replica.health("ready")[0] == 503
    assert "adaptide artifacts sign" in replica.engine()["detail"]
    assert replica.ask()["strategy"] == "popular"
    keys = Keys(key)
    signing.sign_registered(stage.database, utc_now, ArtifactStore(stage.root, keys=keys), keys.ids[0], actor="tests")
    replica.until_ready()
    assert replica.ask()["model"]["adapter_version"] == stage.second
    assert registry.read_adapter(stage.database, stage.second).adapter.state is AdapterState.ACTIVE
    shown = (
        replica.log.read_text() + httpx.get(f"{replica.address}/metrics").text + replica.health("ready")[1].__repr__()
    )
    assert key not in shown
    assert key.encode() not in (stage.folder / "adaptide.db").read_bytes()
    figures |= {"unsigned_served": 0}


@pytest.mark.parametrize(("revision", "words"), [("older", "adaptide db upgrade"), ("9999", "a newer one upgraded it")])
def test_another_versions_schema_does_not_start_and_is_not_ready(
    stage: Stage, figures: Figures, revision: str, words: str
) -> None:
    running = stage.start()
    running.until_ready()
    if revision == "older":
        migrate.downgrade(stage.database, "-1")
    else:
        with stage.database.write() as connection:
            connection.execute(sa.text("UPDATE alembic_version SET version_num = :found"), {"found": revision})
    status, said = stage.ends()
    assert status == 1, said
    assert words in said
    assert "Traceback" not in said
    running.until("it is not ready", lambda: running.health("ready")[0] == 503 or None)
    assert words in running.health("ready")[1]["parts"]["schema"]["detail"]
    figures |= {"schema": revision, "exit_status": status}
