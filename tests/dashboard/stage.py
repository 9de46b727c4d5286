"""A dashboard over the small trained world, really served, with an updater that a test runs at will."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from service.access.schemas import Scope
from service.adapters import service as adapters
from service.adapters.artifacts import ArtifactStore
from service.app import create_app
from service.kit.clock import utc_now
from service.kit.db import Database
from service.settings import Settings
from service.windows import service as windows
from service.windows.repository import Window
from service.windows.states import SealedBecause
from tests import worlds
from tests.built import BuiltWorld
from tests.serving import InThread
from trainer.updater import Updater

QUICK: dict[str, Any] = {
    "log_level": "WARNING",
    "threads": 1,
    "poll_interval": timedelta(seconds=0.2),
    "heartbeat_interval": timedelta(seconds=1),
    "learning_rate_update": 4e-3,
    "update_epochs": 4,
    "update_min_steps": 0,
    "evaluation_items_per_user": 2,
    "gate_tolerance": 1.0,  # what is watched is the dashboard, so every window passes
    "window_max_events": 100_000,
    "window_min_events": 5,
}


class Stage:
    """The store at `url`, empty and migrated before; `served_url`: how the server reaches it, where that is another."""

    def __init__(self, folder: Path, url: str, world: BuiltWorld, *, served_url: str | None = None) -> None:
        self.database = Database(url)
        self.settings = Settings(home=folder / "home", database_url=url, **QUICK)
        self.built = world.copy_into(self.database, self.settings.artifacts_dir)
        served = Settings(home=folder / "home", database_url=served_url or url, **QUICK)
        self.app = create_app(served)
        self._server = InThread(self.app)
        self._server.start()
        self.url = self._server.url
        self._updater = Updater(self.database, self.settings, utc_now, ArtifactStore(self.settings.artifacts_dir))
        worlds.eventually(lambda: self.app.state.services.serving().adapter_version is not None, 120)

    def token(self, *scopes: Scope) -> str:
        return self.app.state.services.access.create("operations", frozenset(scopes), actor="cli").token

    def learn(self, number: int, users: int = worlds.USERS) -> Window:
        """Events come in, a window closes and is learnt; what came of it."""
        worlds.send(self.database, utc_now, worlds.later_walks(number, users=users))
        sealed = windows.seal(self.database, utc_now, self.settings, SealedBecause.MANUAL)
        assert sealed is not None
        self._updater.tick()
        return windows.read_window(self.database, sealed.window_id)

    def active(self) -> str | None:
        return adapters.read_registry(self.database).pointer.adapter_version

    def close(self) -> None:
        self._server.stop()
        self.database.close()
