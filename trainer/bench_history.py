"""How long a user's past takes to read from a store of many events, and by which plan."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from service.events import service as events
from service.kit.db import Database
from service.recommend.history import load_past
from service.settings import Settings
from trainer.bench_stores import empty_store, fill

START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
DAYS = 180
EVENTS_PER_USER = 100
ITEMS = 100_000


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """Milliseconds of one read by random users, its transaction included. plan: of its queries, as the store tells it.

    read: "past" is what a recommendation reads (the prompt's items and those seen), "page" is GET /v1/users/ID/events.
    cold: each user for the first time, after SQLite's file was dropped from the system's cache (PostgreSQL keeps its
    own cache and the system's); warm: the same users again.
    """

    store: str
    stored: int
    read: str
    cold_median_ms: float
    cold_p99_ms: float
    warm_median_ms: float
    warm_p99_ms: float
    plan: list[str]


def bench_history(server: str | None, stored: int, *, reads: int, seed: int) -> Iterator[HistoryRow]:
    """One row for each kind of read."""
    users = max(1, stored // EVENTS_PER_USER)
    with empty_store(server) as database:
        with without_history_index(database):
            fill(database, stored, users=users, items=ITEMS, start=START, days=DAYS, prefix="e")
        for name, read in readers(database).items():
            random = np.random.default_rng(seed)
            asked = [f"u{user}" for user in random.permutation(users)[:reads]]
            drop_caches(database)
            database.engine.dispose()
            read("nobody")  # connects
            cold, warm = (timed(read, asked) for _ in range(2))
            yield HistoryRow(
                database.dialect,
                stored,
                name,
                float(np.median(cold)),
                float(np.percentile(cold, 99)),
                float(np.median(warm)),
                float(np.percentile(warm, 99)),
                plans(database, partial(read, "u0")),  # the most active user: none of its queries is spared
            )


def readers(database: Database) -> dict[str, Callable[[str], object]]:
    """What the service does when it is asked, by name."""
    settings = Settings()

    def past(user_id: str) -> object:
        with database.read() as connection:
            return load_past(
                connection,
                user_id,
                history_items=settings.history_items,
                seen_items=settings.seen_items,
                ignored_types=settings.ignored_event_types,
            )

    return {"past": past, "page": lambda user_id: events.history(database, user_id, limit=50, before_seq=None)}


def timed(read: Callable[[str], object], asked: Sequence[str]) -> list[float]:
    """Milliseconds of each read."""
    times = []
    for user_id in asked:
        started = time.perf_counter()
        read(user_id)
        times.append(1000 * (time.perf_counter() - started))
    return times


def plans(database: Database, run: Callable[[], object]) -> list[str]:
    """The plan of every SELECT that `run` makes, one line each."""
    seen: list[tuple[str, object]] = []

    def note(_c: object, _cursor: object, statement: str, parameters: object, _context: object, _many: bool) -> None:
        if statement.lstrip().startswith("SELECT"):
            seen.append((statement, parameters))

    sa.event.listen(database.engine, "before_cursor_execute", note)
    try:
        run()
    finally:
        sa.event.remove(database.engine, "before_cursor_execute", note)
    sqlite = database.dialect == "sqlite"
    found = []
    with database.read() as connection:
        for statement, parameters in seen:
            explained = connection.exec_driver_sql(
                ("EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN (COSTS OFF) ") + statement,
                parameters,  # type: ignore[arg-type]  # as the driver was given them
            )
            found.append("; ".join(" ".join(str(row[-1]).split()) for row in explained))
    return found


@contextmanager
def without_history_index(database: Database) -> Iterator[None]:
    """The index of users' histories is dropped and made again afterwards: far faster than growing it row by row."""
    table = sa.MetaData()
    table.reflect(database.engine, only=["events"])
    [index] = [own for own in table.tables["events"].indexes if "user_id" in own.columns]
    with database.write() as connection:
        index.drop(connection)
    yield
    with database.write() as connection:
        index.create(connection)


def drop_caches(database: Database) -> None:
    """Ask the system to forget a SQLite file, so that reading it begins on the disk."""
    if database.dialect != "sqlite" or not hasattr(os, "posix_fadvise") or database.url.database is None:
        return
    with database.engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.exec_driver_sql("BEGIN")
    file = os.open(Path(database.url.database), os.O_RDWR)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
