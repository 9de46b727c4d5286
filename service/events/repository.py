"""SQL of events. Long because both databases say some of it in their own words."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

from service.errors import StoreUnavailable
from service.events import partitions
from service.events.tables import event_ids, events, item_popularity, popularity_state
from service.kit import staging
from service.kit.db import CHECK, one_of

_ROW = ("event_id", "user_id", "item_id", "event_type", "occurred_at", "received_at", "value")
_STORED = (*_ROW, "recommendation_id", "position", "properties")
_COLUMNS = [events.c.seq, *(events.c[n] for n in _STORED)]


# Given as one parameter whatever the number of rows (a driver takes far longer over thousands of placeholders than the
# server over the rows), or copied where they are very many. Ids go in in their own order, so that two batches that hold
# the same ones cannot wait for each other; sequence numbers are given in the order of the rows.
_GIVEN_COLUMNS = {
    "event_id": "text",
    "body_hash": "text",
    "user_id": "text",
    "item_id": "text",
    "event_type": "text",
    "occurred_at": "timestamptz",
    "received_at": "timestamptz",
    "value": "double precision",
    "recommendation_id": "text",
    "position": "integer",
    "properties": "jsonb",
}
_STORED_COLUMNS = ", ".join(name for name in _GIVEN_COLUMNS if name != "body_hash")
_AS_JSON = f"""(
    SELECT * FROM ROWS FROM (json_to_recordset(CAST(:rows AS json)) AS (
        {", ".join(f"{name} {kind}" for name, kind in _GIVEN_COLUMNS.items())}
    )) WITH ORDINALITY
)"""  # noqa: S608  # names and types are those above
_INSERT_ON_POSTGRESQL = """
    WITH given AS MATERIALIZED {given},
    fresh AS (
        INSERT INTO event_ids (event_id, body_hash)
        SELECT event_id, decode(body_hash, 'hex') FROM given ORDER BY event_id
        ON CONFLICT (event_id) DO NOTHING
        RETURNING event_id
    )
    INSERT INTO events ({columns})
    SELECT {columns} FROM given JOIN fresh USING (event_id) ORDER BY ordinality
    RETURNING event_id
"""
_INSERT_GIVEN = sa.text(_INSERT_ON_POSTGRESQL.format(given=_AS_JSON, columns=_STORED_COLUMNS))
_INSERT_COPIED = sa.text(_INSERT_ON_POSTGRESQL.format(given="(SELECT * FROM copied_events)", columns=_STORED_COLUMNS))
_IDS_TOGETHER = 10_000  # SQLite takes 32,766 parameters
NEVER = 2**63 - 1
"""No event has this sequence number, or a higher one."""
COPIED = 2_000
"""So many rows at once are copied on PostgreSQL."""


@dataclass(frozen=True, slots=True)
class PopularityKey:
    """What popularity was counted with: another half-life (seconds) or other ignored types are another popularity."""

    half_life_s: float
    ignored_types: tuple[str, ...]


def insert_new(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Insert those whose event_id is not known yet, numbered in their order; returns the ids of exactly those.

    rows: every column but seq, and the body's hash (hex); no event_id twice. Raises StoreUnavailable, with
    the code CHECK, where events were on their way into the net and a partition was made for them: try again.
    """
    if not rows:
        return set()
    if connection.dialect.name == "postgresql":
        if len(rows) >= COPIED:
            staging.copy_rows(connection, "copied_events", _GIVEN_COLUMNS, map(_as_copied, rows))
            return _inserted(connection, _INSERT_COPIED, {})
        return _inserted(connection, _INSERT_GIVEN, {"rows": orjson.dumps(rows).decode()})
    # On SQLite nobody else writes until this transaction ends, so what is not there now will not be there then.
    taken = hashes(connection, [row["event_id"] for row in rows])
    new = [row for row in rows if row["event_id"] not in taken]
    if new:
        ids = [{"event_id": row["event_id"], "body_hash": bytes.fromhex(row["body_hash"])} for row in new]
        connection.execute(event_ids.insert(), ids)
        connection.execute(events.insert(), [{name: row[name] for name in _STORED} for row in new])
    return {row["event_id"] for row in new}


def _inserted(connection: Connection, statement: sa.TextClause, given: Mapping[str, str]) -> set[str]:
    try:
        return set(connection.scalars(statement, given))
    except sa.exc.IntegrityError as error:
        # PostgreSQL sends a row to the net, waits there for who attaches a partition, and then looks at the row again.
        # No other check is on these tables.
        if getattr(error.orig, "sqlstate", None) != CHECK:
            raise
        raise StoreUnavailable("a partition was made for these events meanwhile", retry_after=1) from error


def _as_copied(row: Mapping[str, Any]) -> list[Any]:
    # Times as text: the driver takes far longer over a datetime.
    times = {name: row[name].isoformat() for name in ("occurred_at", "received_at")}
    properties = None if row["properties"] is None else orjson.dumps(row["properties"]).decode()
    values = {**row, **times, "properties": properties}
    return [values[name] for name in _GIVEN_COLUMNS]


def hashes(connection: Connection, ids: Collection[str]) -> dict[str, str]:
    """event_id -> body hash (hex) of those that are stored."""
    if not ids:
        return {}
    query, wanted = sa.select(event_ids.c.event_id, event_ids.c.body_hash), list(ids)
    found: dict[str, str] = {}
    for first in range(0, len(wanted), _IDS_TOGETHER):
        some = one_of(connection, event_ids.c.event_id, wanted[first : first + _IDS_TOGETHER])
        found.update((event_id, body_hash.hex()) for event_id, body_hash in connection.execute(query.where(some)))
    return found


def latest_interactions(
    connection: Connection, user_id: str, limit: int, ignored_types: Collection[str] = (), through_seq: int = NEVER
) -> list[tuple[str, int]]:
    """(item id, sequence number) of the user's last `limit` interactions, newest first: by occurred_at, then as stored.

    None of them lies after `through_seq`; an item occurs as often as it was used.
    """
    query = _latest_interactions(frozenset(ignored_types), through_seq != NEVER)
    wanted = {"user_id": user_id, "most": limit} | ({} if through_seq == NEVER else {"through_seq": through_seq})
    return [(item_id, seq) for item_id, seq in connection.execute(query, wanted)]


@lru_cache(maxsize=8)
def _latest_interactions(ignored_types: frozenset[str], bounded: bool) -> sa.Select[str, int]:
    """Made once: every recommendation runs it, and making it takes four times as long as running it."""
    through = [events.c.seq <= sa.bindparam("through_seq")] if bounded else []
    return (
        sa.select(events.c.item_id, events.c.seq)
        .where(
            events.c.user_id == sa.bindparam("user_id"),
            *(events.c.event_type != t for t in sorted(ignored_types)),
            *through,
        )
        .order_by(events.c.occurred_at.desc(), events.c.seq.desc())
        .limit(sa.bindparam("most"))
    )


def seen_with_seq(
    connection: Connection, user_id: str, limit: int, ignored_types: Collection[str] = (), through_seq: int = NEVER
) -> list[tuple[str, int]]:
    """The last `limit` distinct items that the user interacted with, most recent first, with the sequence number of the
    latest stored interaction with each; none of these lies after `through_seq`."""
    latest = sa.func.max(events.c.occurred_at)
    query = (
        sa.select(events.c.item_id, sa.func.max(events.c.seq))
        .where(*_interactions(user_id, ignored_types), *([] if through_seq == NEVER else [events.c.seq <= through_seq]))
        .group_by(events.c.item_id)
        .order_by(latest.desc(), sa.func.max(events.c.seq).desc())
        .limit(limit)
    )
    return [(item_id, seq) for item_id, seq in connection.execute(query)]


def _interactions(user_id: sa.ColumnElement[str] | str, ignored_types: Collection[str]) -> list[sa.ColumnElement[bool]]:
    wanted = [events.c.user_id == user_id]
    if ignored_types:
        wanted.append(events.c.event_type.not_in(sorted(ignored_types)))
    return wanted


def interactions_after(connection: Connection, seq: int, limit: int, through_seq: int | None = None) -> list[Any]:
    """Up to `limit` events after sequence number `seq`, in its order: rows of seq, user_id, item_id, event_type,
    occurred_at. None lies after `through_seq`, if that is given.

    On PostgreSQL a transaction that commits late can add a row below one that was read already.
    """
    columns = (events.c.seq, events.c.user_id, events.c.item_id, events.c.event_type, events.c.occurred_at)
    query = sa.select(*columns).where(events.c.seq > seq).order_by(events.c.seq).limit(limit)
    return list(connection.execute(query if through_seq is None else query.where(events.c.seq <= through_seq)))


def page_after(
    connection: Connection, seq: int, limit: int, since: datetime | None, until: datetime | None
) -> list[Mapping[str, Any]]:
    """Up to `limit` whole events after sequence number `seq`, in its order, that occurred within [since, until)."""
    query = sa.select(events).where(events.c.seq > seq).order_by(events.c.seq).limit(limit)
    if since is not None:
        query = query.where(events.c.occurred_at >= since)
    if until is not None:
        query = query.where(events.c.occurred_at < until)
    return [dict(row) for row in connection.execute(query).mappings()]


def max_seq(connection: Connection) -> int:
    """The highest sequence number that is visible; 0 when there are no events.

    On PostgreSQL a lower one may still be on its way: sealing a window needs more than this.
    """
    return connection.scalar(sa.select(sa.func.max(events.c.seq))) or 0


def newest(connection: Connection) -> tuple[datetime, datetime] | None:
    """(occurred_at, received_at) of the event that was stored last; None without any."""
    query = sa.select(events.c.occurred_at, events.c.received_at).order_by(events.c.seq.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return None if row is None else (row[0], row[1])


def page(connection: Connection, user_id: str, *, limit: int, before_seq: int | None) -> list[Mapping[str, Any]]:
    """Up to `limit` of the user's events older than event `before_seq`, newest first; none when that one is gone."""
    query = (
        sa.select(*_COLUMNS)
        .where(events.c.user_id == user_id)
        .order_by(events.c.occurred_at.desc(), events.c.seq.desc())
        .limit(limit)
    )
    if before_seq is not None:
        at = connection.scalar(
            sa.select(events.c.occurred_at).where(events.c.seq == before_seq, events.c.user_id == user_id)
        )
        if at is None:
            return []
        query = query.where(
            sa.or_(events.c.occurred_at < at, sa.and_(events.c.occurred_at == at, events.c.seq < before_seq))
        )
    return [dict(row) for row in connection.execute(query).mappings()]


def latest_of_item(connection: Connection, item_id: str, *, among: int, limit: int) -> list[Mapping[str, Any]]:
    """Up to `limit` events with the item, newest first, of the `among` newest sequence numbers: items have no index."""
    query = sa.select(*_COLUMNS).where(events.c.seq > max_seq(connection) - among, events.c.item_id == item_id)
    return [dict(row) for row in connection.execute(query.order_by(events.c.seq.desc()).limit(limit)).mappings()]


def latest_users(connection: Connection, *, among: int, limit: int) -> list[str]:
    """Up to `limit` users of the `among` newest events, the one seen last first."""
    newest = sa.select(events.c.user_id, events.c.seq).order_by(events.c.seq.desc()).limit(among).subquery()
    last = sa.func.max(newest.c.seq)
    return list(
        connection.scalars(sa.select(newest.c.user_id).group_by(newest.c.user_id).order_by(last.desc()).limit(limit))
    )


def of_user(
    connection: Connection, user_id: str, *, after: tuple[datetime, int] | None, limit: int
) -> list[Mapping[str, Any]]:
    """Up to `limit` of the user's events in the order of time, after one of this (occurred_at, seq)."""
    order = (events.c.occurred_at, events.c.seq)
    query = sa.select(*_COLUMNS).where(events.c.user_id == user_id).order_by(*order).limit(limit)
    if after is not None:
        at, seq = after
        later = sa.and_(events.c.occurred_at == at, events.c.seq > seq)
        query = query.where(events.c.occurred_at >= at, sa.or_(events.c.occurred_at > at, later))
    return [dict(row) for row in connection.execute(query).mappings()]


def delete_of_user(connection: Connection, user_id: str, through: datetime) -> tuple[int, set[str]]:
    """Delete the user's events that occurred until then, with their ids; how many, and the recommendations that they
    named."""
    found = list(connection.execute(_delete_of_user(events.delete(), events.c, user_id, through)))
    for table in partitions.expired(connection):
        own = sa.table(table, *(sa.column(name) for name in ("user_id", "event_id", "recommendation_id")))
        # All of it: what has just come in is in no table that has expired.
        try:
            with connection.begin_nested():
                found += connection.execute(_delete_of_user(own.delete(), own.c, user_id, None))
        except sa.exc.ProgrammingError:  # retention has dropped it meanwhile, with all that was in it
            continue
    forget_ids(connection, [event_id for event_id, _ in found])
    return len(found), {recommendation for _, recommendation in found if recommendation is not None}


def _delete_of_user(delete: sa.Delete, columns: Any, user_id: str, through: datetime | None) -> Any:
    until = sa.true() if through is None else columns.occurred_at <= through
    return delete.where(columns.user_id == user_id, until).returning(columns.event_id, columns.recommendation_id)


def delete(connection: Connection, ids_of: Mapping[str, Collection[str]]) -> None:
    """Delete the events with these ids of each user; their index leads to them, whereas ids have none there."""
    for user_id, ids in ids_of.items():
        for first in range(0, len(wanted := sorted(ids)), _IDS_TOGETHER):
            chosen = one_of(connection, events.c.event_id, wanted[first : first + _IDS_TOGETHER])
            connection.execute(events.delete().where(events.c.user_id == user_id, chosen))
        forget_ids(connection, wanted)


def last_occurred_at(connection: Connection, user_id: str) -> datetime | None:
    """When the user's latest event occurred."""
    query = sa.select(sa.func.max(events.c.occurred_at)).where(events.c.user_id == user_id)
    latest: datetime | None = connection.scalar(query)
    return latest


def forget_ids(connection: Connection, ids: Sequence[str]) -> None:
    """These ids may be used again."""
    for first in range(0, len(ids), _IDS_TOGETHER):
        some = one_of(connection, event_ids.c.event_id, ids[first : first + _IDS_TOGETHER])
        connection.execute(event_ids.delete().where(some))


def delete_through(connection: Connection, through_seq: int, limit: int) -> int:
    """Delete the first `limit` events up to `through_seq`, with their ids; how many."""
    query = sa.select(events.c.seq).where(events.c.seq <= through_seq)
    found = connection.scalars(query.order_by(events.c.seq).limit(limit)).all()
    if found:
        # The ids of those alone that were still there: another's might by now be those of events that came again.
        gone = events.delete().where(events.c.seq <= found[-1]).returning(events.c.event_id)
        forget_ids(connection, list(connection.scalars(gone)))
    return len(found)


def window_interactions(
    connection: Connection, after_seq: int, through_seq: int, ignored_types: Collection[str] = ()
) -> list[Any]:
    """(user_id, item_id, occurred_at, seq) with after_seq < seq <= through_seq, by user, then time, then sequence."""
    query = (
        sa.select(events.c.user_id, events.c.item_id, events.c.occurred_at, events.c.seq)
        .where(events.c.seq > after_seq, events.c.seq <= through_seq)
        .order_by(events.c.user_id, events.c.occurred_at, events.c.seq)
    )
    if ignored_types:
        query = query.where(events.c.event_type.not_in(sorted(ignored_types)))
    return list(connection.execute(query))


def item_counts(
    connection: Connection, after_seq: int, through_seq: int, ignored_types: Collection[str] = ()
) -> dict[str, int]:
    """item -> its interactions with after_seq < seq <= through_seq."""
    query = sa.select(events.c.item_id, sa.func.count()).where(*_between(after_seq, through_seq, ignored_types))
    return {item_id: count for item_id, count in connection.execute(query.group_by(events.c.item_id))}


def users_between(
    connection: Connection, after_seq: int, through_seq: int, ignored_types: Collection[str] = ()
) -> list[str]:
    """Users with interactions with after_seq < seq <= through_seq."""
    query = sa.select(events.c.user_id).where(*_between(after_seq, through_seq, ignored_types))
    return list(connection.scalars(query.distinct()))


def _between(after_seq: int, through_seq: int, ignored_types: Collection[str]) -> list[sa.ColumnElement[bool]]:
    wanted = [events.c.seq > after_seq, events.c.seq <= through_seq]
    return [*wanted, events.c.event_type.not_in(sorted(ignored_types))] if ignored_types else wanted


def earlier_items(
    connection: Connection, user_ids: Collection[str], through_seq: int, limit: int, ignored_types: Collection[str] = ()
) -> dict[str, list[str]]:
    """user -> item ids of their last `limit` interactions with seq <= through_seq, oldest first; only users with some.

    However long a history is, no more than the newest `limit` of it are read.
    """

    def newest(user_id: sa.ColumnElement[str] | str) -> sa.Select[Any]:
        query = sa.select(events.c.item_id).where(*_interactions(user_id, ignored_types), events.c.seq <= through_seq)
        return query.order_by(events.c.occurred_at.desc(), events.c.seq.desc()).limit(limit)

    found: Iterable[tuple[str, list[str]]]
    if connection.dialect.name == "postgresql":
        users = sa.bindparam("users", list(user_ids), type_=postgresql.ARRAY(sa.Text))
        wanted = sa.func.unnest(users).table_valued("user_id").render_derived(name="wanted")
        own = sa.func.array(newest(wanted.c.user_id).scalar_subquery(), type_=postgresql.ARRAY(sa.Text))
        found = ((user_id, items) for user_id, items in connection.execute(sa.select(wanted.c.user_id, own)))
    else:
        found = ((user_id, list(connection.scalars(newest(user_id)))) for user_id in user_ids)
    return {user_id: items[::-1] for user_id, items in found if items}


def item_ids_through(connection: Connection, through_seq: int) -> set[str]:
    """Items that occur in events up to `through_seq`."""
    query = sa.select(events.c.item_id).where(events.c.seq <= through_seq).distinct()
    return set(connection.scalars(query))


def popularity_counted_through(connection: Connection, key: PopularityKey) -> int | None:
    """The last event that the stored popularity counts; None when none is stored for `key`."""
    row = connection.execute(sa.select(popularity_state)).one_or_none()
    if row is None or (row.half_life_s, tuple(row.ignored_types)) != (key.half_life_s, key.ignored_types):
        return None
    return int(row.through_seq)


def stored_popularity(connection: Connection) -> dict[str, float]:
    """item_id -> log2 of its weight, of every item that was counted."""
    query = sa.select(item_popularity.c.item_id, item_popularity.c.log2_weight)
    return {item_id: weight for item_id, weight in connection.execute(query)}


def begin_popularity(connection: Connection, key: PopularityKey) -> None:
    """Forget what was counted: nothing is, through event 0."""
    connection.execute(item_popularity.delete())
    connection.execute(popularity_state.delete())
    values = {"id": 1, "through_seq": 0, "half_life_s": key.half_life_s, "ignored_types": list(key.ignored_types)}
    connection.execute(popularity_state.insert().values(values))


def advance_popularity(
    connection: Connection, after_seq: int, through_seq: int, log2_weights: Mapping[str, float]
) -> bool:
    """Note what items weigh once the events with after_seq < seq <= through_seq are counted too.

    log2_weights: of the items that occur in them. False, and nothing is written, unless the stored popularity stood at
    `after_seq`: somebody else has moved it.
    """
    move = popularity_state.update().where(popularity_state.c.through_seq == after_seq).values(through_seq=through_seq)
    if connection.execute(move).rowcount != 1:
        return False
    json_each = (
        "json_each(:given) WHERE true"  # without a WHERE, SQLite takes ON CONFLICT for a join's condition
        if connection.dialect.name == "sqlite"
        else "json_each_text(CAST(:given AS json))"
    )
    upsert = (
        f"INSERT INTO item_popularity (item_id, log2_weight) "  # noqa: S608  # one of the two texts above
        f"SELECT key, CAST(value AS double precision) FROM {json_each} "
        "ON CONFLICT (item_id) DO UPDATE SET log2_weight = excluded.log2_weight"
    )
    connection.execute(sa.text(upsert), {"given": orjson.dumps(dict(log2_weights)).decode()})
    return True
