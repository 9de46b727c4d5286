"""Real `adaptide serve` processes over the small trained world, one store and one key for all of a test."""

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import httpx
import psutil

from service.access.schemas import Scope
from service.access.service import AccessService
from service.kit.clock import utc_now
from service.kit.db import Database
from tests import worlds
from tests.built import BuiltWorld
from tests.cluster.cluster import Process
from tests.cluster.nursery import Nursery
from trainer.load import Plan

T = TypeVar("T")

HOST = "127.0.0.1"
UP_S = 120.0  # torch is loaded by several processes at once, perhaps beside much else
USERS = [f"u{number:02d}" for number in range(worlds.USERS)]
LIMIT = 10


class World:
    """A store that holds the small world, its artifacts, an admin key; `serve` starts processes over them."""

    def __init__(self, nursery: Nursery, folder: Path, url: str, built_world: BuiltWorld) -> None:
        """url: of a migrated, empty store."""
        self.nursery, self.folder, self.url = nursery, folder, url
        self.database = Database(url)
        self.built = built_world.copy_into(self.database, folder / "artifacts")
        self.token = AccessService(self.database, utc_now).create("tests", frozenset({Scope.ADMIN}), actor="cli").token
        self._logs = 0

    @contextlib.contextmanager
    def serve(self, *, ready: bool = True, **settings: str) -> "Iterator[Served]":
        """A process, killed with the block if it still runs. ready: it serves the adapter."""
        self._logs += 1
        served = Served(self, self.folder / f"serve-{self._logs}.log", settings)
        try:
            if ready:
                served.wait_until_personal()
            yield served
        finally:
            served.close()

    def close(self) -> None:
        self.database.close()


class Served:
    """One process and a client of it."""

    def __init__(self, world: World, log: Path, settings: dict[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self.port: int = probe.getsockname()[1]
        own = {
            "HOME": str(world.folder / "home"),
            "ARTIFACTS_URL": str(world.folder / "artifacts"),
            "DATABASE_URL": world.url,
            "HOST": HOST,
            "PORT": str(self.port),
            "THREADS": "1",
            "DEVICE": "cpu",
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ADAPTIDE_")}
        environment = kept | {f"ADAPTIDE_{name}": value for name, value in (own | settings).items()}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        self.token = world.token
        self.process = Process(world.nursery, ["serve"], environment, log)
        self._os = psutil.Process(self.process.pid)
        self.client = httpx.Client(
            base_url=f"http://{HOST}:{self.port}", headers={"Authorization": f"Bearer {self.token}"}, timeout=30
        )

    @property
    def log(self) -> str:
        path = self.process.log
        return path.read_text(errors="replace") if path.exists() else ""  # it is made by the process itself

    def close(self) -> None:
        self.client.close()
        if self.process.alive():
            self.process.signal(signal.SIGKILL)
            self.process.wait(30)

    def until(self, what: str, ask: Callable[[], T | None], seconds: float = 30) -> T:
        """What `ask` answers once it is not None."""
        deadline = time.monotonic() + seconds
        while (answer := ask()) is None:
            assert self.process.alive(), self.log[-5000:]
            assert time.monotonic() < deadline, (
                f"after {seconds:g} s it is still not so that {what}\n{self.log[-5000:]}"
            )
            time.sleep(0.02)
        return answer

    def wait_until_personal(self, seconds: float = UP_S) -> None:
        self.until("it serves the adapter", lambda: self.strategy() == "personalised" or None, seconds)

    def strategy(self) -> str | None:
        """Of the next reply; None when there is none."""
        try:
            reply = self.client.post("/v1/recommendations", json={"user_id": USERS[0], "limit": LIMIT})
        except httpx.TransportError:
            return None
        strategy: str | None = reply.json().get("strategy")
        return strategy

    def metric(self, name: str) -> float:
        """The sum of a metric's samples whose name and labels match the pattern."""
        text = self.client.get("/metrics").raise_for_status().text
        found = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    def resident_mib(self) -> float:
        return float(self._os.memory_info().rss / 2**20)

    def threads(self) -> int:
        return int(self._os.num_threads())

    def plan(self, seconds: float, *, concurrency: int = 1, rate: float = 0.0, warm_s: float = 0.0) -> Plan:
        """Recommendations for the world's users."""
        return Plan(
            HOST, self.port, self.token, USERS, LIMIT, seconds, concurrency=concurrency, rate=rate, warm_s=warm_s
        )


@contextlib.contextmanager
def nursery(folder: Path) -> Iterator[Nursery]:
    """Where processes come from; those that are left are killed with the block."""
    made = Nursery(folder / "nursery.log")
    try:
        yield made
    finally:
        made.close()
