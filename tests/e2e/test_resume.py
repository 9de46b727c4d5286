"""Real processes that are killed while they train: what is begun anew goes on, and comes to the same adapter."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service.adapters import service as adapters
from service.adapters.artifacts import ArtifactStore
from service.kit import migrate
from service.kit.clock import utc_now
from service.kit.db import Database
from service.settings import Settings
from service.windows import service as windows
from service.windows.repository import Window
from service.windows.states import WindowState
from tests import worlds
from tests.built import BuiltWorld
from tests.e2e.test_live import Stage
from trainer.base import build_base
from trainer.recipe import make_recipe
from trainer.updater import Updater

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]
PATIENCE = 600.0  # seconds; starts of torch on a busy machine

LEARNING = {
    "ADAPTIDE_UPDATE_EPOCHS": "20",
    "ADAPTIDE_UPDATE_BATCH_SIZE": "4",
    "ADAPTIDE_EMBEDDING_DROPOUT": "0.1",
    "ADAPTIDE_CHECKPOINT_INTERVAL": "0.05",
    "ADAPTIDE_LEASE_DURATION": "10",
    "ADAPTIDE_WINDOW_RETRY_PAUSE": "0",
    "ADAPTIDE_WINDOW_MIN_EVENTS": "5",
    "ADAPTIDE_WINDOW_MAX_EVENTS": str(6 * worlds.USERS),
}


class Home:
    """A stage over a store with a base in it and a full window."""

    def __init__(self, folder: Path, stage: Stage) -> None:
        self.stage, self.path = stage, folder / "home"
        self.path.mkdir(exist_ok=True)
        self.database = Database(f"sqlite:///{self.path / 'adaptide.db'}")
        migrate.upgrade(self.database)

    def copied(self, target: Path) -> Path:
        """A copy of the home, closed meanwhile: SQLite's files opened a second time would lose this process's locks."""
        self.database.close()
        shutil.copytree(self.path, target)
        self.database = Database(f"sqlite:///{self.path / 'adaptide.db'}")
        return target

    def window(self) -> Window:
        return windows.read_window(self.database, 2)  # the first is what the base learnt from

    def steps(self, kind: str) -> int:
        """Of the newest checkpoint; 0: there is none."""
        found = (self.path / "checkpoints" / kind).glob("*/[0-9]*/manifest.json")
        return max((int(path.parent.name) for path in found), default=0)

    def kept(self, kind: str, after: int = 10) -> int | None:
        found = self.steps(kind)
        return found if found >= after else None


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    stage = Stage(tmp_path, f"sqlite:///{tmp_path / 'home' / 'adaptide.db'}")
    stage.environment |= LEARNING
    home = Home(tmp_path, stage)
    yield home
    stage.end()
    home.database.close()


def settings_of(home: Home, path: Path) -> Settings:
    """Those of the stage's processes, for the same work in this one."""
    given = {n.removeprefix("ADAPTIDE_").lower(): v for n, v in home.stage.environment.items() if "ADAPTIDE_" in n}
    return Settings(**(given | {"home": path, "database_url": f"sqlite:///{path / 'adaptide.db'}"}))


def test_an_updater_that_was_killed_goes_on_to_the_same_adapter(
    home: Home, built_world: BuiltWorld, tmp_path: Path
) -> None:
    built = built_world.copy_into(home.database, home.path / "artifacts")
    worlds.send(home.database, utc_now, worlds.later_walks())
    copy = home.copied(tmp_path / "in-one-go")
    stage = home.stage

    killed = stage.start("trainer", "run")
    stage.until("some steps are kept", lambda: home.kept("window"), PATIENCE)
    killed.kill()
    killed.wait()
    assert home.window().state is WindowState.TRAINING
    assert adapters.read_registry(home.database).pointer.adapter_version == built.adapter_version
    after = home.steps("window")
    second = stage.start("trainer", "run")
    stage.until("the window is done", lambda: home.window().verdict, PATIENCE)
    stage.stop(second)

    database = Database(f"sqlite:///{copy / 'adaptide.db'}")
    settings = settings_of(home, copy)
    in_one_go = Updater(database, settings, utc_now, ArtifactStore(settings.artifacts_dir)).tick()
    database.close()
    assert in_one_go is not None
    window = home.window()
    assert (window.attempts, window.verdict) == (2, WindowState.PROMOTED)
    assert f'"step":{after},' in stage.children[-1][1].read_text()  # of training_resumed
    assert window.candidate_version == in_one_go.candidate_version
    assert not (home.path / "checkpoints" / "window").exists()


def test_a_base_build_that_was_killed_goes_on_to_the_same_base(home: Home, tmp_path: Path) -> None:
    worlds.put(home.database, utc_now, worlds.items())
    worlds.send(home.database, utc_now, worlds.first_walks())
    copy = home.copied(tmp_path / "in-one-go")
    stage, given = home.stage, ("--hidden", "32", "--layers", "2", "--epochs", "40", "--quantiser", "rqkmeans")

    killed = stage.start("base", "build", *given)
    stage.until("some steps are kept", lambda: home.kept("base"), PATIENCE)
    killed.kill()
    killed.wait()
    assert adapters.read_registry(home.database).pointer.base_id is None
    second = stage.start("base", "build", *given)
    seen = [home.steps("base")]
    stage.until("it goes on", lambda: seen.append(home.steps("base")) or second.poll(), PATIENCE)  # type: ignore[func-returns-value]

    database = Database(f"sqlite:///{copy / 'adaptide.db'}")
    settings = settings_of(home, copy)
    recipe = make_recipe("tiny", hidden=32, layers=2, epochs=40, quantiser="rqkmeans", text_encoder="tfidf")
    in_one_go = build_base(database, ArtifactStore(settings.artifacts_dir), settings, utc_now, recipe, actor="tests")
    database.close()
    pointer = adapters.read_registry(home.database).pointer
    assert (pointer.base_id, pointer.adapter_version) == (in_one_go.base_id, in_one_go.adapter_version)
    assert min(step for step in seen if step) >= seen[0] >= 10  # it did not begin again
    assert not (home.path / "checkpoints" / "base").exists()


def test_a_window_outlives_a_killed_rank_and_a_stopped_updater(home: Home, built_world: BuiltWorld) -> None:
    """Two processes train: one of them is killed, then the updater is stopped, then the window is done after all."""
    built = built_world.copy_into(home.database, home.path / "artifacts")
    worlds.send(home.database, utc_now, worlds.later_walks())
    stage = home.stage
    stage.environment["ADAPTIDE_PROCESSES"] = "2"
    stage.environment["ADAPTIDE_PROCESSES_TIMEOUT"] = "120"

    updater = stage.start("trainer", "run")
    first = stage.until("some steps are kept", lambda: home.kept("window"), PATIENCE)
    ranks(updater.pid)[1].kill()
    stage.until("it is tried again", lambda: home.window().attempts == 2 or None, PATIENCE)
    assert "was ended by SIGKILL" in "".join(path.read_text() for _, path in stage.children)
    assert adapters.read_registry(home.database).pointer.adapter_version == built.adapter_version
    second = stage.until("it has gone on", lambda: home.kept("window", first + 1), PATIENCE)
    working = ranks(updater.pid)
    assert stage.stop(updater) == 0
    assert len(working) == 2
    assert not any(process.is_running() for process in working)
    window = home.window()
    assert (window.state, window.attempts) == (WindowState.FAILED, 1)  # to be told to stop is no failure

    again = stage.start("trainer", "run")
    stage.until("the window is done", lambda: home.window().state is not WindowState.FAILED or None, PATIENCE)
    stage.until("the window is done", lambda: home.window().verdict == WindowState.PROMOTED or None, PATIENCE)
    assert stage.stop(again) == 0
    assert home.window().attempts == 2
    assert second > first
    assert stage.children[-1][1].read_text().count("training_resumed") == 1


def ranks(updater: int) -> list[psutil.Process]:
    """The processes that train for it, oldest first."""
    found = [child for child in psutil.Process(updater).children() if "spawn_main" in " ".join(child.cmdline())]
    return sorted(found, key=lambda process: process.create_time())
