"""Bases and adapters that were damaged or made to do harm: refused before an engine sees them, and nothing is run."""

import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from service.adapters import integrity, service
from service.adapters.activation import Activation
from service.adapters.artifacts import ADAPTERS, BASES, ArtifactStore
from service.adapters.contents import METHOD_STATE
from service.adapters.moves import MoveRequest
from service.adapters.place import open_artifacts
from service.adapters.repository import NewAdapter, NewBase
from service.adapters.states import AdapterState
from service.kit import migrate
from service.kit.clock import utc_now
from service.kit.db import Database
from service.settings import Settings
from tests import s3
from tests.adapters.engines import SumEngine
from tests.adapters.tiny import adapter_folder, base_folder
from tests.built import BuiltWorld
from tests.chaos.hostile import Snares, cases, forge
from tests.chaos.scenarios import sized

KEY = "k" * 64
Figures = dict[str, Any]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'adaptide.db'}")
    migrate.upgrade(database)
    yield database
    database.close()


@pytest.fixture(params=["folder", "bucket"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, str]]:
    """Where artifacts lie on a disk, and what ADAPTIDE_ARTIFACTS_URL says of it."""
    if request.param == "folder":
        yield tmp_path / "artifacts", str(tmp_path / "artifacts")
        return
    with s3.serving(tmp_path / "s3") as server:
        s3.use(monkeypatch, server.url)
        monkeypatch.setenv("TEST_S3_PORT", str(server.port))
        yield server.bucket("shop") / "live", "s3://shop/live"


def damaged(good: bytes, draw: random.Random) -> bytes:
    """One bit flipped, or cut off anywhere."""
    if draw.random() < 0.3:
        return good[: draw.randrange(len(good))]
    at = draw.randrange(len(good))
    return good[:at] + bytes([good[at] ^ (1 << draw.randrange(8))]) + good[at + 1 :]


@pytest.mark.scenario(7)
@pytest.mark.timeout(1800)
def test_no_flipped_bit_and_no_truncation_reaches_an_engine(
    place: tuple[Path, str], store: Database, tmp_path: Path, figures: Figures
) -> None:
    """Every file of a base with a tokenizer and of an adapter with a state, their manifests and signatures included."""
    root, url = place
    settings = Settings(home=tmp_path / "home", artifacts_url=url, signing_key=KEY)
    published = publish(open_artifacts(settings), store, tmp_path)
    folders = {room: next((root / room).glob("[ab]*")) for room in (BASES, ADAPTERS)}
    files = {room: sorted(path for path in folder.rglob("*") if path.is_file()) for room, folder in folders.items()}
    assert len(files[BASES]) == 10, "model, codec, tokenizer, manifest and signature"
    assert len(files[ADAPTERS]) == 5
    draw, refused, loaded = random.Random(20260301), 0, 0
    wanted = sized(60, 500)
    for number in range(wanted):
        room = (BASES, ADAPTERS)[number % 2]
        path = draw.choice(files[room])
        good = path.read_bytes()
        path.write_bytes(damaged(good, draw))
        engine = SumEngine()
        machine = settings.model_copy(update={"home": tmp_path / f"home-{number}"})  # whose cache holds nothing yet
        activation = Activation(store, utc_now, open_artifacts(machine), engine, settings.poll_interval)
        status = activation.refresh()
        serves = (status.base_id, status.adapter_version)
        refused += status.degraded is not None and serves == (
            (None, None) if room == BASES else (published[BASES], None)
        )
        loaded += any(model.adapter_version or room == BASES for model in engine.models)
        activation.stop()
        path.write_bytes(good)
        if room == ADAPTERS:
            integrity.verify(store, utc_now, open_artifacts(settings), published[ADAPTERS], actor="test")
    figures |= {
        "damaged": wanted,
        "files": sum(map(len, files.values())),
        "refused": refused,
        "reached_an_engine": loaded,
    }
    assert (refused, loaded) == (wanted, 0)
    whole = Activation(store, utc_now, open_artifacts(settings), SumEngine(), settings.poll_interval)
    assert whole.refresh().adapter_version == published[ADAPTERS]
    whole.stop()


def publish(artifacts: ArtifactStore, database: Database, folder: Path) -> dict[str, str]:
    """A base and the adapter that is active on it; their names by room."""
    source = base_folder(folder / "base")
    (source / "model" / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": {"type": "WordLevel"}}))
    (source / "model" / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64}))
    (source / "model" / "generation_config.json").write_text(json.dumps({"bos_token_id": 1}))
    (source / "model" / "merges.txt").write_text("a b\n")
    base = artifacts.publish_base(source, {})
    source = adapter_folder(folder / "adapter")
    save_file({"windows": np.ones(3, np.float32)}, source / METHOD_STATE)
    adapter = artifacts.publish_adapter(source, {"base_id": base.id}, 1)
    service.register_base(database, utc_now, NewBase(base.id, base.digest))
    service.activate_base(database, utc_now, base.id, actor="test")
    new = NewAdapter(adapter.id, base.id, adapter.digest, "peso")
    service.register_adapter(database, utc_now, new, AdapterState.PASSED)
    service.promote(database, utc_now, artifacts, adapter.id, MoveRequest("test"))
    return {BASES: base.id, ADAPTERS: adapter.id}


@pytest.mark.scenario(8)
@pytest.mark.timeout(1800)
def test_no_hostile_artifact_serves_trains_runs_or_connects(
    place: tuple[Path, str], store: Database, tmp_path: Path, built_world: BuiltWorld, figures: Figures
) -> None:
    root, url = place
    built = built_world.copy_into(store, root)
    snares = Snares(tmp_path / "canary", tmp_path / "outside")
    (snares.outside / "control.pickle").write_bytes(pickle.dumps(_Harmless(snares.outside)))
    good = {BASES: root / BASES / built.base_id, ADAPTERS: root / ADAPTERS / built.adapter_version}
    orders, left_out = [], []
    in_bucket = "://" in url  # small: every sixth there, for what is read is checked by the same code
    for case in cases(snares)[:: sized(6, 1) if in_bucket else 1]:
        if case.only_folder and in_bucket:
            continue
        made = forge(root, good[case.room], case, tmp_path)
        if made is None:
            left_out.append(case.name)
        else:
            orders.append({"name": case.name, "room": case.room, "id": made[0], "digest": made[1]})

    report = watched(tmp_path, store, url, {"cases": orders, "outside": str(snares.outside)})

    let_in = [result["name"] for result in report["results"] if result["why"] is None or result["given"]]
    trained = [result["name"] for result in report["results"] if None in result["updater"]]
    figures |= {"cases": len(orders), "served": len(let_in), "trained_from": len(trained)}
    figures |= {"forbidden_deeds": len(report["noted"]), "left_out": len(left_out)}
    assert (let_in, trained, report["noted"]) == ([], [], [])
    assert not snares.canary.exists()
    assert report["control"] == ["exec", "open", "pickle.find_class", "socket.connect"], "the hook sees what it should"
    assert set(left_out) <= {"the weights are /dev/zero"}


class _Harmless:
    def __init__(self, there: Path) -> None:
        self.there = there

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.there),)


def watched(folder: Path, database: Database, url: str, orders: dict[str, Any]) -> dict[str, Any]:
    """What tests.chaos.watched reports."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ADAPTIDE_", "HF_"))}
    own = {
        "ADAPTIDE_HOME": str(folder / "home"),
        "ADAPTIDE_ARTIFACTS_URL": url,
        "ADAPTIDE_DATABASE_URL": str(database.url),
        "ADAPTIDE_DEVICE": "cpu",
        "ADAPTIDE_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    ports = [int(kept["TEST_S3_PORT"])] if "://" in url else []
    (folder / "orders.json").write_text(json.dumps(orders | {"ports": ports}))
    line = [sys.executable, "-m", "tests.chaos.watched", str(folder / "orders.json")]
    done = subprocess.run(line, env=kept | own, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
