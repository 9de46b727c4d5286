"""Fixtures: a cluster for each way in which replicas hear of a change, shared by the tests of a module."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from service.access.schemas import Scope
from service.access.service import AccessService
from service.adapters import repository
from service.adapters import service as registry
from service.adapters.artifacts import ArtifactStore
from service.adapters.repository import NewAdapter
from service.adapters.states import AdapterState
from service.kit.clock import utc_now
from service.kit.db import Database
from service.settings import Settings
from tests.cluster.cluster import REPLICAS, Cluster
from tests.conftest import REQUIRE_SERVICES, PostgresStore

if TYPE_CHECKING:
    from tests.built import BuiltWorld
    from tests.cluster.traffic import Referee


@pytest.fixture(scope="module", params=["polling", "redis"])
def running(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    _postgres: PostgresStore,
    built_world: "BuiltWorld",
) -> Iterator[tuple[Cluster, tuple[str, str], "Referee"]]:
    """A started cluster, two adapters to move between, and who knows their answers."""
    from tests.cluster.traffic import Referee  # loads torch, which most tests do without

    if shutil.which("haproxy") is None:
        _missing("haproxy is not installed (Debian: apt-get install haproxy)")
    try:
        with socket.socket() as listener:
            listener.bind((REPLICAS[0], 0))
    except OSError:
        pytest.skip(f"{REPLICAS[0]} is no address of the loopback here; on Linux it is")
    folder = tmp_path_factory.mktemp(f"cluster-{request.param}")
    database = Database(_postgres.url)
    try:
        with _redis(request.param, folder) as redis_url:
            built = built_world.copy_into(database, folder / "artifacts")
            artifacts = ArtifactStore(folder / "artifacts")
            second = another(database, artifacts, folder, built.adapter_version)
            key = AccessService(database, utc_now).create("tests", frozenset({Scope.ADMIN}), actor="cli")
            cluster = Cluster(folder, database, _postgres.url, key.token, redis_url)
            try:
                cluster.start()
                yield cluster, (built.adapter_version, second), Referee(database, artifacts)
            finally:
                cluster.close()
    finally:
        database.close()
        _postgres.reset()


@pytest.fixture
def cluster(running: tuple[Cluster, tuple[str, str], "Referee"]) -> Cluster:
    """Whole again, whatever the test before has broken."""
    running[0].heal()
    return running[0]


@pytest.fixture
def adapters(running: tuple[Cluster, tuple[str, str], "Referee"]) -> tuple[str, str]:
    return running[1]


@pytest.fixture
def referee(running: tuple[Cluster, tuple[str, str], "Referee"]) -> "Referee":
    return running[2]


def _missing(reason: str) -> None:
    if REQUIRE_SERVICES:
        pytest.fail(reason)
    pytest.skip(reason)


def another(database: Database, artifacts: ArtifactStore, folder: Path, version: str, seed: int = 0) -> str:
    """The adapter with noise, published and registered as one that may serve."""
    import numpy as np
    import torch

    from trainer.lora import save_adapter

    found = registry.read_adapter(database, version).adapter
    with database.read() as connection:
        base = repository.find_base(connection, found.base_id)
    assert base is not None
    opened = artifacts.open_adapter(version, found.digest, artifacts.open_base(base.base_id, base.digest))
    random = np.random.default_rng(seed)
    tensors = {
        name: torch.from_numpy((array + 0.1 * random.standard_normal(array.shape)).astype(np.float32))
        for name, array in opened.tensors.items()
    }
    source = folder / f"noise-{seed}"
    save_adapter(source, tensors, scale=opened.config["lora_alpha"] / opened.config["r"])
    made = artifacts.publish_adapter(source, {"base_id": found.base_id})
    new = NewAdapter(made.id, found.base_id, made.digest, "noise", trained_through=datetime(2026, 2, 2, tzinfo=UTC))
    registry.register_adapter(database, utc_now, new, AdapterState.PASSED)
    return made.id


@contextmanager
def _redis(param: str, folder: Path) -> Iterator[str | None]:
    """A Redis of the cluster's own: channels are shared by all databases of a server."""
    if param == "polling":
        yield None
        return
    if "redis_url" not in Settings.model_fields:
        pytest.skip("this version has no ADAPTIDE_REDIS_URL")
    if (found := shutil.which("redis-server")) is None:
        _missing("redis-server is not installed (Debian: apt-get install redis-server)")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    line = [str(found), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    child = subprocess.Popen(line, stdout=subprocess.DEVNULL, env=dict(os.environ))
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "redis-server does not start"
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        child.terminate()
        child.wait(10)
