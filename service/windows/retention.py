"""Removing what is old: events of finished windows with their ids (ADAPTIDE_EVENT_RETENTION), and recommendations
(ADAPTIDE_RECOMMENDATION_RETENTION), and what items were before, which both were made from.

For events what counts is when their window was sealed, by which time they had been received. An event stays until all
windows up to its own are done with, however long that takes. On PostgreSQL whole partitions go, so an event stays up to
ADAPTIDE_EVENT_PARTITION longer; what lies in a partition that is not filled by then is deleted row by row. What items
were stays as long as a recommendation, or an event of a window that was trained then, for whatever reason it stays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy.engine import Connection

from service.catalog import repository as catalog
from service.events import partitions
from service.events import repository as events
from service.kit.clock import Clock
from service.kit.db import Database
from service.recommend import repository as recommendations
from service.settings import Settings
from service.windows import repository

BEHIND = timedelta(hours=1)  # a replica may have shown the catalogue as it was somewhat earlier, and clocks differ
BATCH = 2_000  # rows in one transaction: SQLite has one writer at a time, who waits behind it

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Removed:
    """partitions: tables dropped whole, their events not counted. events: deleted one by one."""

    partitions: int
    events: int
    recommendations: int
    items: int = 0
    """Earlier states of items, which no recommendation or update that could be had again was made from."""

    def __bool__(self) -> bool:
        return bool(self.partitions or self.events or self.recommendations or self.items)


def is_wanted(settings: Settings) -> bool:
    """Whether anything is ever removed."""
    return settings.event_retention is not None or settings.recommendation_retention is not None


def remove_old(database: Database, clock: Clock, settings: Settings) -> Removed:
    """Remove what is older than the retention; nothing without one. One process at a time, by its lease.

    It may be interrupted anywhere and goes on the next time. An id is free again only after its event is gone: the
    same event, sent again after that, is a new one. Raises StoreUnavailable.
    """
    now, tables, deleted, forgotten, items = clock(), 0, 0, 0, 0
    if settings.event_retention is not None:
        tables, deleted = _remove_events(database, settings, now - settings.event_retention)
    longest = settings.recommendation_retention or settings.event_retention
    if longest is not None:
        before = now - longest
        forgotten = _in_batches(database, lambda connection: _delete_recommendations(connection, before))
        with database.read() as connection:  # an update may be repeated as long as its events are there
            trained = repository.first_trained(connection)
        needed = before if trained is None else min(before, trained)
        items = _in_batches(database, lambda connection: _forget_items(connection, needed - BEHIND))
    removed = Removed(tables, deleted, forgotten, items)
    if removed:
        log.info(
            "old_rows_removed",
            partitions=removed.partitions,
            events=removed.events,
            recommendations=removed.recommendations,
            items=removed.items,
        )
    return removed


def _remove_events(database: Database, settings: Settings, before: datetime) -> tuple[int, int]:
    """How many partitions were dropped, and events deleted one by one."""
    slack = settings.event_partition if database.dialect == "postgresql" else timedelta(0)
    with database.read() as connection:
        whole, single = (
            repository.finished_through(connection, moment, settings.window_attempts)
            for moment in (before, before - slack)
        )
    partitions.detach(database, whole)
    with database.read() as connection:
        tables = partitions.expired(connection)
    for table in tables:
        _drop(database, table)
    return len(tables), _in_batches(database, lambda connection: events.delete_through(connection, single, BATCH))


def _delete_recommendations(connection: Connection, before: datetime) -> int:
    return recommendations.delete_before(connection, before, BATCH)


def _forget_items(connection: Connection, before: datetime) -> int:
    catalog.lock_revision(connection)
    return catalog.forget_history(connection, before, BATCH)


def _in_batches(database: Database, delete: Callable[[Connection], int]) -> int:
    total = 0
    while True:
        with database.write() as connection:
            deleted = delete(connection)
        total += deleted
        if deleted < BATCH:
            return total


def _drop(database: Database, table: str) -> None:
    """Free the ids of an expired table's events, then drop it.

    Rows go with their ids: one that is freed again after an interruption could be another event's by then.
    """
    more = True
    while more:
        with database.write() as connection:
            last = partitions.last_of(connection, table, BATCH)
            more = last is not None
            if last is not None:
                events.forget_ids(connection, partitions.delete_through(connection, table, last))
    with database.write() as connection:
        partitions.drop(connection, table)
