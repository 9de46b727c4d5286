"""A real service over a test's store that can be killed and started again, and clients that do not give up."""

import os
import random
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from service.access.schemas import Scope
from service.access.service import AccessService
from service.events.tables import event_ids, events
from service.kit.clock import utc_now
from service.kit.db import Database
from tests import worlds
from tests.cluster.cluster import free_port
from tests.cluster.nursery import Nursery

START_S = 300.0  # much else may run beside it
MOST_TOGETHER = 20


class Served:
    """`adaptide serve`, always on the same address. One start at a time; close() at the end."""

    def __init__(
        self,
        nursery: Nursery,
        folder: Path,
        database: Database,
        *,
        url: str | None = None,
        log: Path | None = None,
        **settings: str,
    ) -> None:
        """url: its way to the store, if another. log: where it writes; a file in `folder` unless given."""
        self._nursery, self._log, self._database = nursery, log or folder / "serve.log", database
        key = AccessService(database, utc_now).create("tests", frozenset({Scope.WRITE}), actor="cli")
        port = free_port(["127.0.0.1"])
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ADAPTIDE_")}
        own = {
            "HOME": str(folder / "home"),
            "DATABASE_URL": url or database.url.set(drivername=database.dialect).render_as_string(False),
            "DATABASE_ANSWER_TIMEOUT": "10",  # a busy machine's disk
            "DEVICE": "cpu",
            "LOG_LEVEL": "WARNING",
            "PORT": str(port),
        }
        self._environment = kept | {f"ADAPTIDE_{name}": value for name, value in (own | settings).items()}
        self._environment["OMP_NUM_THREADS"] = "1"
        self.headers = {"Authorization": f"Bearer {key.token}"}
        self.address = f"http://127.0.0.1:{port}"
        self.pid: int | None = None

    def start(self) -> None:
        """Answers when this returns."""
        self.pid = self._nursery.start(["serve"], self._environment, self._log)
        with self.client() as client:
            worlds.eventually(lambda: self._live(client), START_S)

    def _live(self, client: httpx.Client) -> bool:
        assert self.pid is not None
        assert self._nursery.status(self.pid) is None, self._log.read_text()[-3000:]
        try:
            return client.get("/health/live").is_success
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        if self.pid is not None and self._nursery.status(self.pid) is None:
            os.kill(self.pid, signal.SIGKILL)
            assert self._nursery.status(self.pid, 30) == -signal.SIGKILL
        self.pid = None

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.address, headers=self.headers, timeout=30)

    def stored(self) -> Counter[str]:
        """How many rows each identifier has; the list of identifiers has each once and no other."""
        with self._database.read() as connection:
            rows = Counter(connection.scalars(sa.select(events.c.event_id)))
            assert sorted(connection.scalars(sa.select(event_ids.c.event_id))) == sorted(rows)
        return rows


class Writer:
    """A thread that sends new events; what was not acknowledged is sent again, in other company, until it is.

    acknowledged: identifiers, as often as they were. accepted, duplicates: as the service counted them. failures: how
    many requests came to nothing.
    """

    def __init__(self, served: Served, number: int) -> None:
        self.acknowledged: list[str] = []
        self.accepted = self.duplicates = self.failures = 0
        self._served, self._number, self._random = served, number, random.Random(number)
        self._ended, self._given_up = threading.Event(), threading.Event()
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        """Once everything is acknowledged."""
        self._ended.set()
        self._thread.join(START_S)
        done = not self._thread.is_alive()
        self._given_up.set()
        self._thread.join()
        assert done, "something was never acknowledged"
        if self._problem is not None:
            raise self._problem

    def _run(self) -> None:
        try:
            with self._served.client() as client:
                self._send(client)
        except BaseException as problem:  # for the test's thread
            self._problem = problem

    def _send(self, client: httpx.Client) -> None:
        waiting: list[dict[str, Any]] = []
        made = 0
        while (not self._ended.is_set() or waiting) and not self._given_up.is_set():
            while not self._ended.is_set() and len(waiting) < self._random.randint(1, MOST_TOGETHER):
                made += 1
                event_id = f"{self._number}-{made}"
                waiting.append(worlds.event(event_id, f"u{made % 7}", worlds.item_id(made), worlds.START))
            self._random.shuffle(waiting)
            sent = waiting[: self._random.randint(1, len(waiting))]
            try:
                reply = client.post("/v1/events", json={"events": sent})
            except httpx.TransportError:
                reply = None
            if reply is None or reply.status_code != 202:
                assert reply is None or reply.status_code in (429, 503), reply.text
                self.failures += 1
                self._ended.wait(0.05)
                continue
            report = reply.json()
            assert report["accepted"] + report["duplicates"] == len(sent), report
            self.accepted += report["accepted"]
            self.duplicates += report["duplicates"]
            self.acknowledged += [event["event_id"] for event in sent]
            waiting = waiting[len(sent) :]
