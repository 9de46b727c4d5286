"""Light processes over one store: writers of events, sealers of windows, holders of the updater's lease.

They are forked from a process that has imported this module once, so that dozens are started, and killed, for little.
"""

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from service.errors import LeaseLost, StoreUnavailable
from service.events import repository as events
from service.kit.clock import utc_now
from service.kit.db import Database
from service.kit.lease_keeper import held
from service.settings import Settings
from service.windows import service as windows
from service.windows.service import UPDATER_LEASE, Outcome
from service.windows.states import SealedBecause, WindowState

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOLD = "hold"
"""While a file of this name lies beside what they tell, leaders stay at work."""
ENOUGH = 10_000
"""Attempts at a window: none is given up because a test kills many of those who work on it."""


class Crowd:
    """Started processes; each tells what it does in a file of its own, a line at a time."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._folder = url, folder
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._started: list[BaseProcess] = []
        self.ending = folder / "end"

    def start(self, work: Any, *arguments: object) -> tuple[BaseProcess, Path]:
        """`work(url, the file to tell in, the file whose appearance ends it, seed, *arguments)`, and the file."""
        seed = len(self._started)
        said = self._folder / f"{work.__name__}-{seed}.txt"
        said.touch()
        process = self._context.Process(target=work, args=(self._url, said, self.ending, seed, *arguments), daemon=True)
        process.start()
        self._started.append(process)
        return process, said

    def end(self) -> list[int | None]:
        """Let all come to their end; the exit statuses of those that were not killed before."""
        self.ending.touch()
        left = [process for process in self._started if process.is_alive()]
        for process in left:
            process.join(60)
        return [process.exitcode for process in left]

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.join()
            process.close()


@contextmanager
def crowd(database: Database, folder: Path) -> Iterator[Crowd]:
    driver = "postgresql" if database.dialect == "postgresql" else "sqlite"
    made = Crowd(database.url.set(drivername=driver).render_as_string(hide_password=False), folder)
    try:
        yield made
    finally:
        made.close()


def lines(said: Path) -> list[list[str]]:
    """Words of each line that was written to its end."""
    return [line.split() for line in said.read_text().splitlines(True) if line.endswith("\n")]


def _say(said: Path, *words: object) -> None:
    """In one write, which a kill does not cut."""
    file = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.write(file, (" ".join(map(str, words)) + "\n").encode())
    os.close(file)


def writer(url: str, said: Path, ending: Path, seed: int) -> None:
    """Batches of events in transactions that are held open; tells `begun ids`, and `acknowledged ids` after COMMIT."""
    draw, database, batch = random.Random(seed), Database(url), 0
    while not ending.exists():
        batch += 1
        ids = [f"w{seed}-{batch}-{number}" for number in range(draw.randint(1, 12))]
        none = dict.fromkeys(("value", "recommendation_id", "position", "properties"))
        common = {"body_hash": "0" * 64, "user_id": f"w{seed}", "item_id": "i", "event_type": "view"}
        when = {"occurred_at": NOON, "received_at": NOON}
        _say(said, "begun", *ids)
        try:
            with database.write() as connection:
                events.insert_new(connection, [{"event_id": one, **common, **when, **none} for one in ids])
                time.sleep(draw.random() * 0.02)  # numbers are taken, the commit comes later
        except StoreUnavailable:
            continue
        _say(said, "acknowledged", *ids)
        time.sleep(draw.random() * 0.05)  # SQLite's lock is not fair: leave the sealers a turn
    database.close()


def sealer(url: str, said: Path, ending: Path, seed: int, max_events: int) -> None:
    """Seals by count and by hand, without the lease that would keep updaters apart."""
    database = Database(url, lock_timeout_s=5)
    settings = Settings(home=said.parent, database_url=url, window_max_events=max_events)
    reasons = (SealedBecause.COUNT, SealedBecause.COUNT, SealedBecause.MANUAL)
    turn = seed
    while not ending.exists():
        turn += 1
        try:
            window = windows.seal(database, utc_now, settings, reasons[turn % 3])
        except StoreUnavailable:
            continue  # a writer was slow: try again, as the updater does
        if window is not None:
            _say(said, "sealed", window.window_id)
        time.sleep(0.005)
    database.close()


def leader(url: str, said: Path, ending: Path, seed: int, lease_s: float, work_s: float) -> None:
    """Takes the lease when it can, and brings windows to an outcome; tells `working`, `concluded` or `fenced`."""
    database = Database(url)
    settings = Settings(home=said.parent, database_url=url, window_attempts=ENOUGH)
    while not ending.exists():
        time.sleep(0.01)
        try:
            with held(database, UPDATER_LEASE, f"leader-{os.getpid()}", timedelta(seconds=lease_s)) as lease:
                if lease is None or (window := windows.claim(database, utc_now, settings, lease)) is None:
                    continue
                _say(said, "working", window.window_id, lease.fence)
                time.sleep(work_s)
                while (said.parent / HOLD).exists():
                    time.sleep(0.01)
                outcome = Outcome(WindowState.NO_CHANGE, f"by {lease.fence}")
                try:
                    windows.conclude(database, utc_now, None, window.window_id, lease, outcome)  # type: ignore[arg-type]
                except LeaseLost:
                    _say(said, "fenced", window.window_id, lease.fence)
                else:
                    _say(said, "concluded", window.window_id, lease.fence)
        except (LeaseLost, StoreUnavailable) as error:
            _say(said, "stopped", type(error).__name__)
    database.close()
