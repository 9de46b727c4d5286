"""An update whose artifacts lie in a bucket: one that takes nothing fails the attempt, not the service."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from service.adapters import service as adapters
from service.adapters.artifacts import ADAPTERS
from service.adapters.place import open_artifacts
from service.kit.db import Database
from service.settings import Settings
from service.windows import service as windows
from service.windows.states import SealedBecause, WindowState
from tests import worlds
from tests.built import BuiltWorld
from tests.conftest import SetClock
from tests.s3 import Answer, S3Server, between, refuse, serving, use
from trainer.updater import Updater


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with serving(tmp_path / "s3") as server:
        use(monkeypatch, server.url)
        yield server


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the store's part is tested on both elsewhere
def test_a_bucket_that_takes_nothing_fails_the_attempt_and_the_next_one_publishes(
    server: S3Server, database: Database, settings: Settings, clock: SetClock, built_world: BuiltWorld,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    built = built_world.copy_into(database, server.bucket("shop") / "live")
    wanted = settings.model_copy(
        update={
            "artifacts_url": "s3://shop/live",
            "artifacts_timeout": timedelta(seconds=5),
            "artifacts_collect": True,
            "window_retry_pause": timedelta(0),
            "update_epochs": 1,
            "update_min_steps": 0,
            "gate_min_users": 1,
            "gate_tolerance": 1.0,
        }
    )
    full = [True]

    def meddle(method: str, path: str, body: bytes) -> Answer:
        return refuse("QuotaExceeded", 400) if full[0] and method == "PUT" and "/adapters/" in path else None

    with between(server, meddle) as url:
        use(monkeypatch, url)
        artifacts = open_artifacts(wanted)
        updater = Updater(database, wanted, clock, artifacts)
        worlds.send(database, clock, worlds.later_walks())
        assert windows.seal(database, clock, wanted, SealedBecause.MANUAL) is not None
        failed = updater.tick()
        assert failed is not None
        assert failed.state is WindowState.FAILED
        assert "bucket shop is full or its quota is reached" in (failed.reason or "")
        pointer = adapters.read_registry(database).pointer
        assert (pointer.adapter_version, pointer.revision) == (built.adapter_version, 1)
        assert artifacts.names(ADAPTERS) == [built.adapter_version]

        full[0] = False
        done = updater.tick()
    assert done is not None
    assert (done.window_id, done.attempts) == (failed.window_id, 2)
    assert done.state in (WindowState.PROMOTED, WindowState.REFUSED)
    assert set(artifacts.names(ADAPTERS)) == {built.adapter_version, done.candidate_version}
