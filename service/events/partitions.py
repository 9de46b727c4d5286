"""Partitions of events on PostgreSQL: ranges of the sequence, made ahead, about as long in time as is wished.

`events_p<first>` holds [first, next partition's first). `events_default` is a net below: what finds no partition lands
there, and the net then becomes a partition itself. SQLite has none of this; every function does nothing there.
"""

import re
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from service.events.tables import events
from service.kit.db import Database

WIDTH = 1_000_000
"""Events of a partition at least: a smaller one is not worth what each costs every reader."""
GROWTH = 4
"""A partition is at most so many times as wide as the one before: an import is no forecast."""
LOCK_S = 1.0  # whoever reads or writes events waits behind us while we wait
_ONE_AT_A_TIME = 7_026_365_411  # of the transactions that change partitions
_DEFAULT = "events_default"
_EXPIRED = "events_expired_"
_BOUNDS = re.compile(r"FROM \((MINVALUE|'?-?\d+'?)\) TO \('?(-?\d+)'?\)")


@dataclass(frozen=True, slots=True)
class Partition:
    """Sequence numbers first <= seq < end."""

    name: str
    first: int
    end: int


def ensure(database: Database, span: timedelta) -> list[Partition]:
    """Make partitions until one lies wholly ahead of what was numbered so far; returns the new ones.

    span: how much time one should hold. Any number of processes may call this at once. Raises StoreUnavailable when
    readers or writers are in the way for more than a second: nothing was changed then, and events go into the net.
    """
    if database.dialect != "postgresql":
        return []
    with database.read() as connection:
        if _is_ahead(connection):
            return []
    try:
        return _make_ahead(database, span)
    except sa.exc.IntegrityError:  # an event fell into the net after we had looked into it; now it is seen
        return _make_ahead(database, span)


def _make_ahead(database: Database, span: timedelta) -> list[Partition]:
    made: list[Partition] = []
    with database.write() as connection:
        _lock(connection)
        if connection.scalar(sa.text(f"SELECT EXISTS (SELECT FROM {_DEFAULT})")):  # noqa: S608  # a constant
            made.append(_turn_net_into_partition(connection, span))
        while not _is_ahead(connection):
            made.append(_append(connection, span))
    return made


def every(connection: Connection) -> list[Partition]:
    """The partitions in their order, without the net."""
    query = sa.text("""
        SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits
        JOIN pg_class AS c ON c.oid = inhrelid WHERE inhparent = 'events'::regclass
    """)
    found = []
    for name, bound in connection.execute(query):
        if (match := _BOUNDS.search(bound)) is not None:
            first = 1 if match[1] == "MINVALUE" else int(match[1].strip("'"))
            found.append(Partition(name, first, int(match[2])))
    return sorted(found, key=lambda partition: partition.first)


def detach(database: Database, through_seq: int) -> int:
    """Take partitions that hold nothing after `through_seq` out of `events`; returns how many.

    Their rows are gone for every reader at once; `expired` names the tables that are left to be dropped. Raises
    StoreUnavailable as `ensure` does.
    """
    if database.dialect != "postgresql":
        return 0
    with database.read() as connection:
        if not _expirable(connection, through_seq):
            return 0
    with database.write() as connection:
        _lock(connection)
        old = _expirable(connection, through_seq)
        for partition in old:
            connection.execute(sa.text(f"ALTER TABLE events DETACH PARTITION {partition.name}"))
            connection.execute(sa.text(f"ALTER TABLE {partition.name} RENAME TO {_EXPIRED}{partition.first}"))
    return len(old)


def expired(connection: Connection) -> list[str]:
    """Tables that were taken out of `events` and are still there."""
    if connection.dialect.name != "postgresql":
        return []
    query = sa.text("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE :names ORDER BY oid")
    return list(connection.scalars(query, {"names": _EXPIRED.replace("_", r"\_") + "%"}))


def last_of(connection: Connection, table: str, limit: int) -> int | None:
    """The sequence number of the last of the first `limit` rows of an expired table; None where none is left."""
    query = sa.text(f"SELECT max(seq) FROM (SELECT seq FROM {table} ORDER BY seq LIMIT :limit) AS page")  # noqa: S608
    found: int | None = connection.scalar(query, {"limit": limit})
    return found


def delete_through(connection: Connection, table: str, through_seq: int) -> list[str]:
    """Delete the rows of an expired table up to `through_seq`; the ids of those that were still there."""
    query = sa.text(f"DELETE FROM {table} WHERE seq <= :through RETURNING event_id")  # noqa: S608
    return list(connection.scalars(query, {"through": through_seq}))


def drop(connection: Connection, table: str) -> None:
    connection.execute(sa.text(f"DROP TABLE IF EXISTS {table}"))


def width(before: int, took: timedelta | None, span: timedelta) -> int:
    """Events of the next partition, after one of `before` that took so long to fill (None: not known)."""
    wished = GROWTH * before
    if took is not None and took > timedelta(0):
        wished = int(min(wished, before * (span / took)))
    return max(WIDTH, wished // WIDTH * WIDTH)


def _lock(connection: Connection) -> None:
    """No other transaction changes partitions until this one ends, and no lock is waited for long."""
    connection.execute(
        sa.text("SELECT set_config('lock_timeout', :milliseconds, true), set_config('statement_timeout', '0', true)"),
        {"milliseconds": str(int(LOCK_S * 1000))},
    )
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ONE_AT_A_TIME})


def _last_given(connection: Connection) -> int:
    """The highest number that was given out; 0 before the first."""
    given: int = connection.execute(
        sa.text("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM events_seq_seq")
    ).scalar_one()
    return given


def _is_ahead(connection: Connection) -> bool:
    """Whether the last partition is still untouched. Whoever lacks one looks here first, so this reads no event."""
    return bool(parts := every(connection)) and _last_given(connection) < parts[-1].first


def _append(connection: Connection, span: timedelta) -> Partition:
    """One partition more, after the last."""
    parts = every(connection)
    first = parts[-1].end if parts else 1
    made = Partition(f"events_p{first}", first, first + _next_width(connection, parts, span))
    _make(connection, made.name)
    _attach(connection, made)
    return made


def _next_width(connection: Connection, parts: list[Partition], span: timedelta) -> int:
    if len(parts) < 2:
        return WIDTH
    full, following = parts[-2], parts[-1]
    return width(full.end - full.first, _age(connection, full, following), span)


def _age(connection: Connection, full: Partition, following: Partition) -> timedelta | None:
    """How long it took to fill one, from its first event to the next one's."""
    moments = []
    for partition in (full, following):
        query = sa.select(events.c.received_at).where(events.c.seq >= partition.first, events.c.seq < partition.end)
        moments.append(connection.execute(query.order_by(events.c.seq).limit(1)).scalar_one_or_none())
    begun, ended = moments
    return None if begun is None or ended is None else ended - begun


def _turn_net_into_partition(connection: Connection, span: timedelta) -> Partition:
    """The table below becomes a partition as it is, with a new net under it: no row is moved.

    Nobody else can number an event meanwhile, so its end can be laid beyond all that were.
    """
    connection.execute(sa.text("LOCK TABLE ONLY events IN ACCESS EXCLUSIVE MODE"))
    parts = every(connection)
    first = parts[-1].end if parts else 1
    end = first + max(_next_width(connection, parts, span), _whole(_last_given(connection) + 1 - first))
    made = Partition(f"events_p{first}", first, end)
    connection.execute(sa.text(f"ALTER TABLE events DETACH PARTITION {_DEFAULT}"))
    connection.execute(sa.text(f"ALTER TABLE {_DEFAULT} RENAME TO {made.name}"))
    _attach(connection, made)
    _make(connection, _DEFAULT)
    connection.execute(sa.text(f"ALTER TABLE events ATTACH PARTITION {_DEFAULT} DEFAULT"))
    return made


def _whole(events_at_least: int) -> int:
    return -(-events_at_least // WIDTH) * WIDTH


def _make(connection: Connection, name: str) -> None:
    connection.execute(sa.text(f"CREATE TABLE {name} (LIKE events INCLUDING ALL)"))


def _attach(connection: Connection, partition: Partition) -> None:
    # ATTACH lets writers through to the other partitions; CREATE .. PARTITION OF would stop them.
    bounds = f"FROM ({partition.first}) TO ({partition.end})"
    connection.execute(sa.text(f"ALTER TABLE events ATTACH PARTITION {partition.name} FOR VALUES {bounds}"))


def _expirable(connection: Connection, through_seq: int) -> list[Partition]:
    return [partition for partition in every(connection)[:-1] if partition.end - 1 <= through_seq]
