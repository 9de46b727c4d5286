"""What one event, one stored recommendation and one item cost in bytes and seconds: the units of docs/scale.md."""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import sqlalchemy as sa

from service.adapters.repository import NewBase
from service.catalog import service as catalog
from service.catalog.follower import CatalogueFollower
from service.catalog.schemas import MAX_BATCH, Item
from service.kit.clock import utc_now
from service.kit.db import Database
from service.kit.ids import uuid7
from service.recommend.fallback import PopularityFollower
from service.recommend.record import WRITTEN_TOGETHER
from service.recommend.repository import insert
from service.settings import Settings
from service.windows import service as windows
from trainer.bench_stores import empty_store, fill, fill_items

START, DAYS = 1_767_225_600.0, 90.0  # 2026-01-01T00:00:00Z
EVENTS_PER_USER = 100
TITLE, DESCRIPTION = "thing number {0} " + 46 * "x", 200 * "x"  # 60 and 200 characters, as in a shop


@dataclass(frozen=True, slots=True)
class CapacityRow:
    """bytes_each: in the store with its indexes, or resident in the process. seconds_each: to write or to read one."""

    store: str
    what: str
    count: int
    bytes_each: float
    seconds_each: float


def bench_capacity(
    server: str | None, *, events: int, recommendations: int, items: int, seed: int = 0
) -> Iterator[CapacityRow]:
    """A row for each kind of thing that grows with the users, the traffic or the catalogue."""
    random = np.random.default_rng(seed)
    with empty_store(server) as database:
        base = NewBase("b-" + 16 * "0", 64 * "0")

        def measured(what: str, count: int, write: Callable[[], object]) -> CapacityRow:
            before, started = _stored(database), time.perf_counter()
            write()
            seconds = time.perf_counter() - started
            return CapacityRow(database.dialect, what, count, (_stored(database) - before) / count, seconds / count)

        yield measured("item, stored", min(items, 20_000), lambda: _put(database, min(items, 20_000)))
        yield measured("item, codes alone", items, lambda: fill_items(database, items, base.base_id))
        yield measured(
            "event",
            events,
            lambda: fill(
                database,
                events,
                users=max(1, events // EVENTS_PER_USER),
                items=items,
                start=START,
                days=DAYS,
                prefix="e-",
            ),
        )
        yield measured(
            "recommendation", recommendations, lambda: _recommend(database, recommendations, items, events, random)
        )
        windows.install_base(database, utc_now, base, through_seq=windows.horizon(database), actor="bench")
        settings = Settings()
        follower = CatalogueFollower(database, settings.poll_interval)
        yield _resident(database.dialect, "item, in a replica", items, follower.refresh)
        popularity = PopularityFollower(
            database,
            settings.popularity_half_life,
            settings.popularity_refresh,
            settings.ignored_event_types,
            lambda: follower.index,
        )
        yield _resident(database.dialect, "event, counted by a replica", events, popularity.refresh)


def _put(database: Database, count: int) -> None:
    for first in range(0, count, MAX_BATCH):
        numbers = range(first, min(count, first + MAX_BATCH))
        catalog.put_items(
            database,
            utc_now,
            [
                Item(item_id=f"t{n}", title=TITLE.format(n), description=DESCRIPTION, categories=["things"])
                for n in numbers
            ],
        )


def _recommend(database: Database, count: int, items: int, events: int, random: np.random.Generator) -> None:
    """Of 10 items after a history of 20, as the service stores them, in its largest groups."""
    users = max(1, events // EVENTS_PER_USER)
    for first in range(0, count, WRITTEN_TOGETHER):
        rows = [
            {
                "recommendation_id": uuid7(),
                "user_id": f"u{random.integers(users)}",
                "created_at": utc_now(),
                "strategy": "personalised",
                "fallback_reason": None,
                "base_id": "b-" + 16 * "0",
                "adapter_version": "a000001-" + 12 * "0",
                "catalog_revision": 1,
                "history": [f"i{n}" for n in random.integers(items, size=20)],
                "items": [
                    [f"i{n}", float(score)]
                    for n, score in zip(
                        random.integers(items, size=10), random.normal(-9, 2, 10).astype(np.float32), strict=True
                    )
                ],
            }
            for _ in range(min(WRITTEN_TOGETHER, count - first))
        ]
        with database.write() as connection:
            insert(connection, rows)


def _resident(store: str, what: str, count: int, read: Callable[[], object]) -> CapacityRow:
    process = psutil.Process()
    gc.collect()
    before, started = process.memory_info().rss, time.perf_counter()
    read()
    seconds = time.perf_counter() - started
    gc.collect()
    return CapacityRow(store, what, count, (process.memory_info().rss - before) / count, seconds / count)


def _stored(database: Database) -> int:
    """Bytes of the whole store, after what was written has gone where it stays."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if database.dialect == "postgresql":
            connection.exec_driver_sql("CHECKPOINT")
            return int(connection.scalar(sa.text("SELECT pg_database_size(current_database())")) or 0)
    with database.engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.exec_driver_sql("BEGIN")
    assert database.url.database is not None  # noqa: S101  # an in-memory store is refused
    return Path(database.url.database).stat().st_size
