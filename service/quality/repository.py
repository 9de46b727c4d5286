"""SQL of the closed loop: recommendations and events as they are judged, and the buckets that they are counted into."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

from service.catalog.tables import items
from service.events.tables import events
from service.kit.db import one_of
from service.kit.ids import least_uuid7, moment_of
from service.quality.attribution import Shown, Taken
from service.quality.figures import Counts, Sums
from service.quality.tables import quality_buckets, quality_state
from service.recommend.tables import recommendations

MAIN = "main"
POPULAR = "popular"
_TOGETHER = 10_000  # SQLite takes 32,766 parameters
_SUMS = tuple(Sums.__dataclass_fields__)
_COUNTS = tuple(name for name in Counts.__dataclass_fields__ if name != "sums")
_ARM = sa.func.coalesce(recommendations.c.arm, MAIN)
_MODEL = sa.func.coalesce(recommendations.c.adapter_version, recommendations.c.base_id, POPULAR)


@dataclass(frozen=True, slots=True)
class Model:
    """Whatever ranks: an adapter version, a base's id alone, or "popular"; in which arm of an experiment."""

    model: str
    strategy: str
    arm: str = MAIN


@dataclass(frozen=True, slots=True)
class Made(Shown):
    """A recommendation and what ranked it."""

    by: Model


@dataclass(frozen=True, slots=True)
class Bucket:
    """What one model's recommendations of start <= time < end came to."""

    start: datetime
    end: datetime
    by: Model
    counts: Counts


def counted_through(connection: Connection) -> datetime | None:
    """Recommendations made before it are in the buckets; None before the first."""
    found: datetime | None = connection.scalar(sa.select(quality_state.c.counted_through))
    return found


def first_made(connection: Connection, since: datetime | None) -> datetime | None:
    """When the first recommendation from `since` on was made, by its id."""
    own = recommendations.c.recommendation_id
    query = sa.select(sa.func.min(own))
    found = connection.scalar(query if since is None else query.where(own >= least_uuid7(since)))
    return None if found is None else moment_of(found)


def made(connection: Connection, start: datetime, end: datetime, after: str, limit: int) -> list[Made]:
    """Up to `limit` recommendations made in start <= time < end, by id, which sorts by time, after this one."""
    own = recommendations.c
    query = (
        sa.select(own.recommendation_id, own.user_id, own.created_at, own["items"], own.strategy, _MODEL, _ARM)
        .where(own.recommendation_id >= least_uuid7(start), own.recommendation_id < least_uuid7(end))
        .where(own.recommendation_id > after)
        .order_by(own.recommendation_id)
        .limit(limit)
    )
    return [
        Made(recommendation_id, user_id, at, _item_ids(shown), Model(model, strategy, arm))
        for recommendation_id, user_id, at, shown, strategy, model, arm in connection.execute(query)
    ]


def taken_by_time(
    connection: Connection,
    user_ids: Collection[str],
    item_ids: Collection[str],
    since: datetime,
    until: datetime,
    ignored_types: Collection[str],
) -> list[Taken]:
    """Interactions of these users with these items, since <= occurred_at <= until."""
    own = events.c
    query = sa.select(own.user_id, own.item_id, own.occurred_at, own.recommendation_id).where(
        one_of(connection, own.user_id, user_ids),
        own.occurred_at >= since,
        own.occurred_at <= until,
        *_counted(ignored_types),
    )
    return [
        Taken(*row)
        for some in _some(item_ids)
        for row in connection.execute(query.where(one_of(connection, own.item_id, some)))
    ]


def taken_by_name(connection: Connection, ids: Collection[str], ignored_types: Collection[str]) -> list[Taken]:
    """Interactions that name one of these recommendations."""
    own = events.c
    query = sa.select(own.user_id, own.item_id, own.occurred_at, own.recommendation_id).where(
        one_of(connection, own.recommendation_id, ids), own.recommendation_id.is_not(None), *_counted(ignored_types)
    )
    return [Taken(*row) for row in connection.execute(query)]


def _some(values: Collection[str]) -> Iterator[list[str]]:
    wanted = sorted(values)
    return (wanted[first : first + _TOGETHER] for first in range(0, len(wanted), _TOGETHER))


def _counted(ignored_types: Collection[str]) -> list[sa.ColumnElement[bool]]:
    return [events.c.event_type.not_in(sorted(ignored_types))] if ignored_types else []


def find_shown(connection: Connection, ids: Collection[str]) -> list[Shown]:
    """The recommendations with these ids that are stored."""
    own, query = recommendations.c.recommendation_id, sa.select(*_SHOWN)
    return [
        _shown(row) for some in _some(ids) for row in connection.execute(query.where(one_of(connection, own, some)))
    ]


def shown_later(
    connection: Connection, until: Mapping[str, datetime], since: datetime, limit: int
) -> dict[str, list[Shown]]:
    """user -> the first `limit` recommendations made for the user since <= time <= until[user], oldest first."""
    own = recommendations.c

    def later(user_id: Any) -> sa.Select[Any]:
        return (
            sa.select(*_SHOWN)
            .where(own.user_id == user_id, own.created_at >= since, own.created_at <= max(until.values()))
            .order_by(own.created_at, own.recommendation_id)
            .limit(limit)
        )

    found: dict[str, list[Shown]] = {user_id: [] for user_id in until}
    for row in _of_each(connection, until, later):
        if row.created_at <= until[row.user_id]:
            found[row.user_id].append(_shown(row))
    return found


def shown_before(connection: Connection, user_ids: Collection[str], before: datetime) -> dict[str, tuple[str, ...]]:
    """user -> the items of the user's last recommendation made before then; only users with one."""
    own = recommendations.c

    def last(user_id: Any) -> sa.Select[Any]:
        query = sa.select(*_SHOWN).where(own.user_id == user_id, own.created_at < before)
        return query.order_by(own.created_at.desc(), own.recommendation_id.desc()).limit(1)

    return {row.user_id: _item_ids(row[3]) for row in _of_each(connection, user_ids, last)}


_SHOWN = (
    recommendations.c.recommendation_id,
    recommendations.c.user_id,
    recommendations.c.created_at,
    recommendations.c["items"],
)


def _of_each(connection: Connection, user_ids: Collection[str], query_of: Callable[[Any], sa.Select[Any]]) -> list[Any]:
    """The rows of a query that is made for each user: one statement where the dialect has lateral joins."""
    if not user_ids:
        return []
    if connection.dialect.name == "postgresql":
        users = sa.bindparam("users", list(user_ids), type_=postgresql.ARRAY(sa.Text))
        wanted = sa.func.unnest(users).table_valued("user_id").render_derived(name="wanted")
        own = query_of(wanted.c.user_id).lateral("own")
        return list(connection.execute(sa.select(own).select_from(wanted.join(own, sa.true()))))
    return [row for user_id in user_ids for row in connection.execute(query_of(user_id))]


def _shown(row: Any) -> Shown:
    return Shown(row[0], row[1], row[2], _item_ids(row[3]))


def _item_ids(shown: list[Any]) -> tuple[str, ...]:
    return tuple(item_id for item_id, *_ in shown)


def count_catalogue(connection: Connection) -> int:
    """Items that can be recommended."""
    query = sa.select(sa.func.count()).select_from(items).where(items.c.available, items.c.deleted_at.is_(None))
    return connection.scalar(query) or 0


def record(
    connection: Connection, counted: Collection[Bucket], horizon: timedelta, end: datetime, now: datetime
) -> None:
    """Add what was counted, through `end`."""
    rows = [
        {
            "bucket_start": bucket.start,
            "bucket_end": bucket.end,
            "model": bucket.by.model,
            "strategy": bucket.by.strategy,
            "arm": bucket.by.arm,
            "horizon_s": horizon.total_seconds(),
            "counted_at": now,
            **{name: getattr(bucket.counts.sums, name) for name in _SUMS},
            **{name: getattr(bucket.counts, name) for name in _COUNTS},
        }
        for bucket in counted
    ]
    if rows:
        connection.execute(quality_buckets.insert(), rows)
    if connection.execute(quality_state.update().values(counted_through=end)).rowcount == 0:
        connection.execute(quality_state.insert().values(id=1, counted_through=end))


def buckets(
    connection: Connection,
    horizon: timedelta,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    models: Collection[str] | None = None,
    sketches: bool = True,
    sketches_since: datetime | None = None,
) -> list[Bucket]:
    """Buckets that begin in since <= time < until, judged with this horizon, in order of time.

    sketches: whether to read those of the items, which are most of a row, and since when; without they are empty.
    """
    own = quality_buckets.c
    columns: list[sa.ColumnElement[Any]] = [column for column in own if column is not own.item_sketch]
    if sketches and sketches_since is None:
        columns.append(own.item_sketch)
    elif sketches:
        columns.append(sa.case((own.bucket_start >= sketches_since, own.item_sketch)).label(own.item_sketch.name))
    query = sa.select(*columns).where(own.horizon_s == horizon.total_seconds())
    if since is not None:
        query = query.where(own.bucket_start >= since)
    if until is not None:
        query = query.where(own.bucket_start < until)
    if models is not None:
        query = query.where(own.model.in_(models))
    query = query.order_by(own.bucket_start, own.model, own.strategy, own.arm)
    return [_bucket(row) for row in connection.execute(query).mappings()]


def _bucket(row: sa.RowMapping) -> Bucket:
    found = {name: row[name] for name in _COUNTS if row.get(name) is not None}
    counts = Counts(Sums(*(row[name] for name in _SUMS)), **found)
    by = Model(row["model"], row["strategy"], row["arm"])
    return Bucket(row["bucket_start"], row["bucket_end"], by, counts)


def count_immature(
    connection: Connection, since: datetime | None, until: datetime | None, limit: int
) -> dict[Model, int]:
    """How many of the first `limit` recommendations made in since <= time < until are whose."""
    own = recommendations.c
    query = sa.select(_MODEL.label("model"), own.strategy, _ARM.label("arm"))
    if since is not None:
        query = query.where(own.recommendation_id >= least_uuid7(since))
    if until is not None:
        query = query.where(own.recommendation_id < least_uuid7(until))
    some = query.order_by(own.recommendation_id).limit(limit).subquery()
    grouped = sa.select(some.c.model, some.c.strategy, some.c.arm, sa.func.count())
    found = connection.execute(grouped.group_by(some.c.model, some.c.strategy, some.c.arm))
    return {Model(model, strategy, arm): count for model, strategy, arm, count in found}


def delete_before(connection: Connection, before: datetime) -> int:
    """Delete the buckets that ended before then; how many."""
    gone: int = connection.execute(quality_buckets.delete().where(quality_buckets.c.bucket_end < before)).rowcount
    return gone
