"""SQL of recommendations."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from service.events.tables import events
from service.kit.db import one_of
from service.kit.ids import least_uuid7
from service.recommend.basis import RecordedSettings
from service.recommend.tables import recommendation_settings, recommendations

_INSERT = recommendations.insert()
_IDS_TOGETHER = 10_000  # SQLite takes 32,766 parameters
MADE_BEFORE = timedelta(minutes=1)
"""No recommendation's id is that much older than its created_at: the id is of its request's arrival."""


def insert(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    connection.execute(_INSERT, rows)


def keep_settings(connection: Connection, wanted: Iterable[RecordedSettings], *, now: datetime) -> None:
    """Store those that are not there yet."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    rows = [{"settings_id": own.id, "details": own.details, "created_at": now} for own in wanted]
    if rows:
        connection.execute(insert(recommendation_settings).on_conflict_do_nothing(), rows)


def find(connection: Connection, recommendation_id: str) -> Mapping[str, Any] | None:
    """Its row, with the `details` of its settings (None where they were not recorded)."""
    own, shared = recommendations, recommendation_settings
    query = sa.select(own, shared.c.details).join_from(
        own, shared, shared.c.settings_id == own.c.settings_id, isouter=True
    )
    row = connection.execute(query.where(own.c.recommendation_id == recommendation_id)).mappings().one_or_none()
    return None if row is None else dict(row)


def of_user(
    connection: Connection, user_id: str, *, after: tuple[datetime, str] | None, limit: int
) -> list[Mapping[str, Any]]:
    """Up to `limit` recommendations made for the user in the order of time, after one of this (created_at, id)."""
    own = recommendations.c
    query = sa.select(recommendations).where(own.user_id == user_id)
    if after is not None:
        at, last = after
        later = sa.and_(own.created_at == at, own.recommendation_id > last)
        query = query.where(own.created_at >= at, sa.or_(own.created_at > at, later))
    found = connection.execute(query.order_by(own.created_at, own.recommendation_id).limit(limit))
    return [dict(row) for row in found.mappings()]


def named_by_user(connection: Connection, user_id: str, *, after: str, limit: int) -> list[Mapping[str, Any]]:
    """Up to `limit` recommendations made for nobody that an event of the user names, by id, after this one."""
    own = recommendations.c.recommendation_id
    named = sa.select(events.c.recommendation_id).where(
        events.c.user_id == user_id, events.c.recommendation_id.is_not(None)
    )
    query = sa.select(recommendations).where(recommendations.c.user_id.is_(None), own > after, own.in_(named))
    return [dict(row) for row in connection.execute(query.order_by(own).limit(limit)).mappings()]


def latest_of_user(connection: Connection, user_id: str, limit: int) -> list[Mapping[str, Any]]:
    """The latest recommendations made for the user, newest first."""
    own = recommendations.c
    query = sa.select(recommendations).where(own.user_id == user_id)
    query = query.order_by(own.created_at.desc(), own.recommendation_id.desc()).limit(limit)
    return [dict(row) for row in connection.execute(query).mappings()]


def latest_lists(
    connection: Connection, limit: int, before: str | None = None
) -> list[tuple[str, datetime, list[list[Any]]]]:
    """(recommendation_id, created_at, items) of up to `limit` recommendations made before one, newest first.

    By their ids, which sort by time, so that no more rows are read than are returned.
    """
    own = recommendations.c
    query = sa.select(own.recommendation_id, own.created_at, own["items"]).order_by(own.recommendation_id.desc())
    if before is not None:
        query = query.where(own.recommendation_id < before)
    return [(found, at, items) for found, at, items in connection.execute(query.limit(limit))]


def page_after(
    connection: Connection, last: str, limit: int, since: datetime | None, until: datetime | None
) -> list[Mapping[str, Any]]:
    """Up to `limit` recommendations after the one with id `last`, by id and so about by time, made at or after `since`
    and before `until`, where those are given."""
    own = recommendations.c
    query = sa.select(recommendations).where(own.recommendation_id > last).order_by(own.recommendation_id).limit(limit)
    if since is not None:
        query = query.where(own.recommendation_id >= least_uuid7(since - MADE_BEFORE), own.created_at >= since)
    if until is not None:
        query = query.where(own.created_at < until)
    return [dict(row) for row in connection.execute(query).mappings()]


def delete(connection: Connection, ids: Collection[str]) -> None:
    connection.execute(recommendations.delete().where(one_of(connection, recommendations.c.recommendation_id, ids)))


def delete_of_user(connection: Connection, user_id: str, named: Collection[str]) -> int:
    """Delete the user's recommendations and those for nobody among `named` ones; how many.

    One for nobody is the user's when an event of the user names it.
    """
    own = recommendations.c.user_id == user_id
    gone: int = connection.execute(recommendations.delete().where(own)).rowcount
    wanted = sorted(named)
    for first in range(0, len(wanted), _IDS_TOGETHER):
        chosen = one_of(connection, recommendations.c.recommendation_id, wanted[first : first + _IDS_TOGETHER])
        anonymous = recommendations.c.user_id.is_(None)
        gone += connection.execute(recommendations.delete().where(chosen, anonymous)).rowcount
    return gone


def delete_before(connection: Connection, before: datetime, limit: int) -> int:
    """Delete up to `limit` recommendations made before then; how many. Found by their ids, which sort by time."""
    old = sa.select(recommendations.c.recommendation_id).where(
        recommendations.c.recommendation_id < least_uuid7(before), recommendations.c.created_at < before
    )
    ids = list(connection.scalars(old.order_by(recommendations.c.recommendation_id).limit(limit)))
    if ids:
        chosen = one_of(connection, recommendations.c.recommendation_id, ids)
        connection.execute(recommendations.delete().where(chosen))
    return len(ids)
