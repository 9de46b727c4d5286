"""SQL of events. Long because both databases say some of it in their own words."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

from service.events.tables import event_ids, events, item_popularity, popularity_state
from service.kit import staging
from service.kit.db import one_of
from service.recommend.tables import recommendations

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
COPIED = 2_000
"""So many rows at once are copied on PostgreSQL."""


@dataclass(frozen=True, slots=True)
class PopularityKey:
    """What popularity was counted with: another half-life (seconds) or other ignored types are another popularity."""

    half_life_s: float
    ignored_types: tuple[str, ...]


def insert_new(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Insert those whose event_id is not known yet, numbered in their order; returns the ids of exactly those.

    rows: every column but seq, and the body's hash (hex); no event_id twice.
    """
    if not rows:
        return set()
    if connection.dialect.name == "postgresql":
        if len(rows) >= COPIED:
            staging.copy_rows(connection, "copied_events", _GIVEN_COLUMNS, map(_as_copied, rows))
            return set(connection.scalars(_INSERT_COPIED))
        return set(connection.scalars(_INSERT_GIVEN, {"rows": orjson.dumps(rows).decode()}))
    # On SQLite nobody else writes until this transaction ends, so what is not there now will not be there then.
    taken = hashes(connection, [row["event_id"] for row in rows])
    new = [row for row in rows if row["event_id"] not in taken]
    if new:
        ids = [{"event_id": row["event_id"], "body_hash": bytes.fromhex(row["body_hash"])} for row in new]
        connection.execute(event_ids.insert(), ids)
        connection.execute(events.insert(), [{name: row[name] for name in _STORED} for row in new])
    return {row["event_id"] for row in new}


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


def latest_items(connection: Connection, user_id: str, limit: int, ignored_types: Collection[str] = ()) -> list[str]:
    """Item ids of the user's last `limit` interactions, newest first; an item occurs as often as it was used.

    Newest is the latest occurred_at, then the latest stored.
    """
    query = _latest_items(frozenset(ignored_types))
    return [item_id for (item_id,) in connection.execute(query, {"user_id": user_id, "most": limit})]


@lru_cache(maxsize=8)
def _latest_items(ignored_types: frozenset[str]) -> sa.Select[str]:
    """Made once: every recommendation runs it, and making it takes four times as long as running it."""
    return (
        sa.select(events.c.item_id)
        .where(events.c.user_id == sa.bindparam("user_id"), *(events.c.event_type != t for t in sorted(ignored_types)))
        .order_by(events.c.occurred_at.desc(), events.c.seq.desc())
        .limit(sa.bindparam("most"))
    )


def seen_items(connection: Connection, user_id: str, limit: int, ignored_types: Collection[str] = ()) -> list[str]:
    """The last `limit` distinct items that the user interacted with, most recent first."""
    latest = sa.func.max(events.c.occurred_at)
    query = (
        sa.select(events.c.item_id)
        .where(*_interactions(user_id, ignored_types))
        .group_by(events.c.item_id)
        .order_by(latest.desc(), sa.func.max(events.c.seq).desc())
        .limit(limit)
    )
    return list(connection.scalars(query))


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


def max_seq(connection: Connection) -> int:
    """The highest sequence number that is visible; 0 when there are no events.

    On PostgreSQL a lower one may still be on its way: sealing a window needs more than this.
    """
    return connection.scalar(sa.select(sa.func.max(events.c.seq))) or 0


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


def erase_user(connection: Connection, user_id: str) -> tuple[int, int]:
    """Delete the user's events, with their ids, and recommendations; returns how many of each."""
    gone = list(connection.scalars(events.delete().where(events.c.user_id == user_id).returning(events.c.event_id)))
    forget_ids(connection, gone)
    forgotten = connection.execute(recommendations.delete().where(recommendations.c.user_id == user_id)).rowcount
    return len(gone), forgotten


def forget_ids(connection: Connection, ids: Sequence[str]) -> None:
    """These ids may be used again."""
    for first in range(0, len(ids), _IDS_TOGETHER):
        some = one_of(connection, event_ids.c.event_id, ids[first : first + _IDS_TOGETHER])
        connection.execute(event_ids.delete().where(some))


def delete_through(connection: Connection, through_seq: int, limit: int) -> int:
    """Delete the first `limit` events up to `through_seq`, with their ids; how many."""
    query = sa.select(events.c.seq, events.c.event_id).where(events.c.seq <= through_seq)
    found = connection.execute(query.order_by(events.c.seq).limit(limit)).all()
    if found:
        connection.execute(events.delete().where(events.c.seq <= found[-1].seq))
        forget_ids(connection, [row.event_id for row in found])
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
