"""One service and one updater over a small world with a base, as real processes, and windows for the updater to learn.

`start` runs any command of ours; what all of them import is imported once (tests/cluster/nursery.py).
"""

import hashlib
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx
import sqlalchemy as sa

from service.access.schemas import Scope
from service.access.service import AccessService
from service.adapters import contents
from service.adapters import service as adapters
from service.adapters.artifacts import ArtifactStore
from service.adapters.integrity import require_base
from service.adapters.tables import activations
from service.adapters.tables import adapters as adapter_rows
from service.errors import NotFound
from service.kit.clock import utc_now
from service.kit.db import Database
from service.windows import service as windows
from service.windows.repository import Window
from tests import worlds
from tests.built import BuiltWorld
from tests.cluster.cluster import Process, answers, free_port
from tests.cluster.nursery import Nursery
from tests.cluster.traffic import Traffic

T = TypeVar("T")

PATIENCE = 240.0
"""Seconds in which anything comes about, on a machine with much else to do."""
NEWCOMERS = 24
EVENTS = 7 * NEWCOMERS
"""Of one window: so many users, seven events each, none of whom is in another window."""
SETTINGS = {
    "POLL_INTERVAL": "0.1",
    "TICK_INTERVAL": "0.1",
    "LEASE_DURATION": "30",
    "THREADS": "1",
    "DEVICE": "cpu",
    "REQUEST_DEADLINE": "10",  # none falls back because the machine is slow
    "DATABASE_ANSWER_TIMEOUT": "10",
    "WINDOW_MIN_EVENTS": "100000",
    "WINDOW_MAX_EVENTS": str(EVENTS),
    "WINDOW_ATTEMPTS": "1000",
    "WINDOW_RETRY_PAUSE": "0",
    "UPDATE_EPOCHS": "10",
    "UPDATE_MIN_STEPS": "0",
    "LEARNING_RATE_UPDATE": "0.01",
    "GATE_TOLERANCE": "1",
}


class Stand:
    """folder: logs, and the home and artifacts unless the settings (without prefix) say otherwise."""

    def __init__(
        self, nursery: Nursery, world: BuiltWorld, database: Database, folder: Path, settings: dict[str, str]
    ) -> None:
        self.database, self.folder = database, folder
        self._nursery, self._count, self.window_id = nursery, 0, 1  # the first window is the base's
        self._port = free_port(["127.0.0.1"])
        driver = "postgresql" if database.dialect == "postgresql" else "sqlite"
        own = SETTINGS | {
            "HOME": str(folder / "home"),
            "ARTIFACTS_URL": str(folder / "artifacts"),
            "DATABASE_URL": database.url.set(drivername=driver).render_as_string(hide_password=False),
            "PORT": str(self._port),
        }
        self.settings = own | settings
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.artifacts = ArtifactStore(Path(self.settings["ARTIFACTS_URL"]))
        self.base = world.copy_into(database, self.artifacts.root)
        key = AccessService(database, utc_now).create("tests", frozenset({Scope.ADMIN}), actor="cli")
        self.headers = {"Authorization": f"Bearer {key.token}"}
        self.address = f"http://127.0.0.1:{self._port}"
        self._started: list[Process] = []

    def start(self, *arguments: str, **settings: str) -> Process:
        """`adaptide` with these arguments; TMPDIR is set as it is, other settings get their prefix."""
        temporary = settings.pop("TMPDIR", str(self.temporary))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ADAPTIDE_")}
        kept |= {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "TMPDIR": temporary}
        own = {f"ADAPTIDE_{name}": value for name, value in (self.settings | settings).items()}
        self._count += 1
        log = self.folder / f"{self._count:03d}-{arguments[0]}.log"
        process = Process(self._nursery, list(arguments), kept | own, log)
        self._started.append(process)
        return process

    def serve(self) -> Process:
        """The service, answering with the model."""
        process = self.start("serve")
        self.until("the service is ready", lambda: answers(f"{self.address}/health/ready"))
        return process

    def updater(self, **settings: str) -> Process:
        return self.start("trainer", "run", **settings)

    def stop(self, updater: Process) -> None:
        """As an operator does, once it has started."""
        self.until("the updater runs", lambda: updater.said("updater_started") or None)
        updater.signal(signal.SIGTERM)
        assert updater.wait(PATIENCE) == 0, self.logs()

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.address, headers=self.headers, timeout=30)

    def traffic(self) -> Traffic:
        """Recommendations only: an event more would move the ends of the windows."""
        return Traffic(self.address, self.headers, clients=1, writes=False)

    def newcomers(self, client: httpx.Client | None = None) -> int:
        """The events of a whole window, which walk in steps that the window before did not; its number to be."""
        self.window_id += 1
        number = self.window_id
        wanted = walks(number)
        if client is None:
            worlds.send(self.database, utc_now, wanted)
        else:
            client.post("/v1/events", json={"events": wanted}).raise_for_status()
        return number

    def window(self, window_id: int) -> Window | None:
        """None before it is sealed."""
        try:
            return windows.read_window(self.database, window_id)
        except NotFound:
            return None

    def concluded(self, window_id: int) -> Window:
        """The window, once it has its outcome."""

        def ask() -> Window | None:
            window = self.window(window_id)
            return window if window is not None and window.verdict not in (None, "failed") else None

        return self.until(f"window {window_id} has an outcome", ask)

    def failed(self, window_id: int, attempts: int = 1) -> Window:
        """The window, once so many attempts at it have failed."""

        def ask() -> Window | None:
            window = self.window(window_id)
            failures = 0 if window is None else window.attempts - (window.verdict is None)
            return window if window is not None and failures >= attempts and window.reason else None

        return self.until(f"window {window_id} has failed", ask)

    def counts(self, window_id: int) -> tuple[int, int]:
        """How many adapters and how many activations name the window."""
        with self.database.read() as connection:
            found = [
                connection.scalar(sa.select(sa.func.count()).where(table.c.window_id == window_id)) or 0
                for table in (adapter_rows, activations)
            ]
        return found[0], found[1]

    def visible(self) -> list[str]:
        """Names in the folder of adapters that are an adapter's. Each must be whole."""
        names = [path.name for path in (self.artifacts.root / "adapters").iterdir()]
        found = [name for name in names if contents.VERSION.fullmatch(name)]
        base = self.artifacts.open_base(self.base.base_id, self._digest())
        for name in found:
            manifest = (self.artifacts.root / "adapters" / name / "manifest.json").read_bytes()
            self.artifacts.open_adapter(name, hashlib.sha256(manifest).hexdigest(), base)
        return found

    def left_behind(self) -> list[str]:
        """Names of what a publisher did not finish."""
        found = (self.artifacts.root / "adapters").iterdir()
        return [path.name for path in found if not contents.VERSION.fullmatch(path.name)]

    def active(self) -> str | None:
        return adapters.read_registry(self.database).pointer.adapter_version

    def until(self, what: str, ask: Callable[[], T | None], seconds: float = PATIENCE) -> T:
        """What `ask` answers once it is not None."""
        deadline = time.monotonic() + seconds
        while (answer := ask()) is None:
            assert time.monotonic() < deadline, f"after {seconds:g} s it is still not so that {what}\n{self.logs()}"
            time.sleep(0.02)
        return answer

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        for process in self._started:
            if process.alive():
                os.kill(process.pid, 9)
                process.wait(10)

    def _digest(self) -> str:
        with self.database.read() as connection:
            found = require_base(connection, self.base.base_id)
        return found.digest


def walks(number: int) -> list[dict[str, Any]]:
    """Newcomers' walks in a pattern that the window before did not have."""
    step = (3, 5, 7)[number % 3]
    start = worlds.START + timedelta(days=number)
    found = worlds.walks(f"new{number}", users=NEWCOMERS, length=EVENTS // NEWCOMERS, step=step, start=start)
    return [event | {"user_id": f"n{number}-{event['user_id']}"} for event in found]
