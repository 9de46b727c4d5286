"""Removing what is old: events of finished windows, their ids, and recommendations (ADAPTIDE_EVENT_RETENTION).

What counts is when an event's window was sealed, by which time it had been received. An event stays until all windows
up to its own are done with, however long that takes. On PostgreSQL whole partitions go, so an event stays up to
ADAPTIDE_EVENT_PARTITION longer; what lies in a partition that is not filled by then is deleted row by row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog
from sqlalchemy.engine import Connection

from service.events import partitions
from service.events import repository as events
from service.kit.clock import Clock
from service.kit.db import Database
from service.recommend import repository as recommendations
from service.settings import Settings
from service.windows import repository

BATCH = 2_000  # rows in one transaction: SQLite has one writer at a time, who waits behind it

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Removed:
    """partitions: tables dropped whole, their events not counted. events: deleted one by one."""

    partitions: int
    events: int
    recommendations: int

    def __bool__(self) -> bool:
        return bool(self.partitions or self.events or self.recommendations)


def remove_old(database: Database, clock: Clock, settings: Settings) -> Removed:
    """Remove what is older than the retention; nothing without one. One process at a time, by its lease.

    It may be interrupted anywhere and goes on the next time. An id is free again only after its event is gone: the
    same event, sent again after that, is a new one. Raises StoreUnavailable.
    """
    if settings.event_retention is None:
        return Removed(0, 0, 0)
    before = clock() - settings.event_retention
    slack = settings.event_partition if database.dialect == "postgresql" else before - before
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
    removed = Removed(
        len(tables),
        _in_batches(database, lambda connection: events.delete_through(connection, single, BATCH)),
        _in_batches(database, lambda connection: _delete_recommendations(connection, before)),
    )
    if removed:
        log.info(
            "old_rows_removed",
            partitions=removed.partitions,
            events=removed.events,
            recommendations=removed.recommendations,
        )
    return removed


def _delete_recommendations(connection: Connection, before: datetime) -> int:
    return recommendations.delete_before(connection, before, BATCH)


def _in_batches(database: Database, delete: Callable[[Connection], int]) -> int:
    total = 0
    while True:
        with database.write() as connection:
            deleted = delete(connection)
        total += deleted
        if deleted < BATCH:
            return total


def _drop(database: Database, table: str) -> None:
    """Free the ids of an expired table's events, then drop it."""
    after, more = 0, True
    while more:
        with database.write() as connection:
            found = partitions.read_ids(connection, table, after, BATCH)
            events.forget_ids(connection, [event_id for _, event_id in found])
        more = bool(found)
        after = found[-1][0] if found else after
    with database.write() as connection:
        partitions.drop(connection, table)
