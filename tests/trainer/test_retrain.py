"""An adapter trained again from its window has the same weights and the same digest; what prevents it is said."""

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.adapters import service as adapters
from service.catalog.schemas import Item
from service.catalog.service import delete_item, put_items
from service.errors import ConfigurationError, NotFound
from service.kit.db import Database
from service.settings import Settings
from service.tables import metadata
from service.users.service import erase_user
from service.windows.states import WindowState
from tests import worlds
from tests.built import BuiltWorld
from tests.conftest import SetClock
from tests.trainer.test_updater import Desk, make_settings
from trainer.base import BuiltBase
from trainer.reproduce import settings_then
from trainer.retrain import Retrained, retrain


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return make_settings(tmp_path / "home", database_url)


@pytest.fixture
def built(built_world: BuiltWorld, database: Database, settings: Settings) -> BuiltBase:
    return built_world.copy_into(database, settings.artifacts_dir)


@pytest.fixture
def desk(database: Database, settings: Settings, clock: SetClock, built: BuiltBase) -> Desk:
    return Desk(database, settings, clock)


def learn(desk: Desk, number: int = 1, **changes: Any) -> str:
    """Learn a window; the version that came of it."""
    desk.send(worlds.later_walks(number))
    desk.close()
    window = desk.updater(**changes).tick()
    assert window is not None
    assert window.verdict in (WindowState.PROMOTED, WindowState.REFUSED)
    assert window.candidate_version is not None
    return window.candidate_version


def again(desk: Desk, version: str, **changes: Any) -> Retrained:
    return retrain(desk.database, desk.artifacts, desk.settings.model_copy(update=changes), version)


def test_the_same_digest_comes_again_and_again_whatever_has_changed_since(desk: Desk, clock: SetClock) -> None:
    version = learn(desk)
    second = learn(desk, 2)
    put_items(desk.database, clock, [Item(item_id="zz", title="new"), Item(item_id="i03", title="other")])
    delete_item(desk.database, clock, "i04")

    for _ in range(2):
        found = again(desk, version, learning_rate_update=1.0, seed=99, update_epochs=1)
        assert (found.impossible, found.notes) == (None, [])
        assert found.identical
        assert (found.digest_again, found.largest_difference) == (found.digest_then, 0.0)
    assert again(desk, second).identical


def test_a_fresh_process_comes_to_the_same_digest(desk: Desk) -> None:
    version = learn(desk)
    environment = {
        "ADAPTIDE_HOME": str(desk.settings.home),
        "ADAPTIDE_DATABASE_URL": desk.settings.store_url,
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": ":".join(sys.path),
    }
    command = [sys.executable, "-m", "trainer.cli", "trainer", "retrain", version, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["identical"], found["digest_again"]) == (True, found["digest_then"])


def test_a_method_that_keeps_a_state_comes_again_with_it(desk: Desk) -> None:
    learn(desk, method="sum-lora-all")
    assert again(desk, learn(desk, 2, method="sum-lora-all")).identical


def test_what_is_needed_is_kept_with_the_adapter(desk: Desk) -> None:
    kept = adapters.read_adapter(desk.database, learn(desk)).adapter.hyperparameters["reproduce"]
    assert set(kept) == {"settings", "catalog_revision", "data", "machine"}
    assert kept["settings"]["seed"] == 0
    assert {"torch", "threads", "instructions"} <= set(kept["machine"])
    assert "database_url" not in kept["settings"]


def test_other_weights_are_told_by_how_much(desk: Desk) -> None:
    version = learn(desk)
    with desk.database.write() as connection:
        table = metadata.tables["adapters"]
        row = adapters.read_adapter(desk.database, version).adapter
        kept = row.hyperparameters["reproduce"]
        other = kept | {"settings": kept["settings"] | {"learning_rate_update": 5e-3}}
        chosen = table.c.adapter_version == version
        connection.execute(table.update().where(chosen).values(hyperparameters={"reproduce": other}))
    found = again(desk, version)
    assert not found.identical
    assert found.largest_difference is None or found.largest_difference > 0


def test_a_user_who_was_erased_since_makes_it_impossible(desk: Desk, clock: SetClock) -> None:
    version = learn(desk)
    erase_user(desk.database, "u05", clock=clock, actor="tests")
    assert "no longer all there" in (again(desk, version).impossible or "")


def test_what_cannot_be_trained_again_says_why(desk: Desk, built: BuiltBase) -> None:
    assert "came with a base" in (again(desk, built.adapter_version).impossible or "")
    with pytest.raises(NotFound):
        again(desk, "a000001-000000000000")
    version = learn(desk)
    table = metadata.tables["adapters"]
    with desk.database.write() as connection:
        hyperparameters = connection.scalar(
            sa.select(table.c.hyperparameters).where(table.c.adapter_version == version)
        )
        chosen = table.update().where(table.c.adapter_version == version)
        machine = hyperparameters["reproduce"]["machine"] | {"torch": "0.1"}
        other = hyperparameters | {"reproduce": hyperparameters["reproduce"] | {"machine": machine}}
        connection.execute(chosen.values(hyperparameters=other))
    assert again(desk, version).notes[0].startswith("torch: 0.1 then")
    with desk.database.write() as connection:
        connection.execute(chosen.values(hyperparameters={"rank": 8}))
    assert "an earlier version" in (again(desk, version).impossible or "")
    desk.artifacts.remove("adapters", version)
    with desk.database.write() as connection:
        connection.execute(chosen.values(hyperparameters=hyperparameters))
    assert version in (again(desk, version).impossible or "")


def test_settings_of_then_are_taken_for_those_of_now() -> None:
    now = Settings()
    kept = now.model_copy(update={"seed": 7, "proximal_weight": 3.5}).model_dump(mode="json")
    chosen = {name: kept[name] for name in ("seed", "proximal_weight", "ignored_event_types", "proximal_group_by")}
    then = settings_then(now, chosen)
    assert (then.seed, then.proximal_weight, then.ignored_event_types) == (7, 3.5, now.ignored_event_types)
    assert then.proximal_group_by is now.proximal_group_by
    assert then.window_max_age == timedelta(hours=1)
    with pytest.raises(ConfigurationError, match="a setting mood"):
        settings_then(now, {"mood": "blue"})
    with pytest.raises(ConfigurationError, match="seed=blue"):
        settings_then(now, {"seed": "blue"})
