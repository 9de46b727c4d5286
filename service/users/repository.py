"""SQL of erasures. Writers of what is held on a user ask here before they commit."""

import hashlib
import hmac
import secrets
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

from service.kit.db import limit_lock_waits, one_of
from service.users.tables import erased_users, erasure_state

SETTLED = timedelta(minutes=1)
"""A recommendation recorded so soon after its user's erasure may have been made before: by a replica whose clock is
ahead, or from a past that Redis could not be told to drop."""
_TOGETHER = 10_000  # SQLite takes 32,766 parameters


@dataclass(frozen=True, slots=True)
class Erasures:
    """How many there have been in this store, and the key under which users are known."""

    salt: bytes
    count: int
    last_at: datetime | None

    def digest(self, user_id: str) -> bytes:
        """What is kept of a user who was erased; the audit log's name of the user, too."""
        return hmac.digest(self.salt, user_id.encode(), hashlib.sha256)


@dataclass(frozen=True, slots=True)
class ErasedUser:
    """refused_through: events of the user that occurred until then are refused."""

    number: int
    erased_at: datetime
    refused_through: datetime


def read_erasures(connection: Connection) -> Erasures | None:
    """None in a store without any."""
    row = connection.execute(sa.select(erasure_state)).one_or_none()
    return None if row is None else Erasures(row.salt, row.erasures, row.last_erased_at)


def hold_erasures(connection: Connection) -> Erasures:
    """The same for a transaction that writes; no other erasure is noted until it ends."""
    row = {"id": 1, "salt": secrets.token_bytes(32), "erasures": 0}
    insert = postgresql.insert(erasure_state) if connection.dialect.name == "postgresql" else None
    if insert is not None:
        connection.execute(insert.values(row).on_conflict_do_nothing())
    elif read_erasures(connection) is None:  # nobody else writes
        connection.execute(erasure_state.insert().values(row))
    found = connection.execute(sa.select(erasure_state).with_for_update()).one()
    return Erasures(found.salt, found.erasures, found.last_erased_at)


def find(connection: Connection, digest: bytes) -> ErasedUser | None:
    row = connection.execute(sa.select(erased_users).where(erased_users.c.user_digest == digest)).one_or_none()
    return None if row is None else ErasedUser(row.number, row.erased_at, row.refused_through)


def note(connection: Connection, erasures: Erasures, digest: bytes, now: datetime, refused_through: datetime) -> None:
    """One erasure more, of this user; `erasures` is held."""
    known = find(connection, digest)
    values = {"number": erasures.count + 1, "erased_at": now, "refused_through": refused_through}
    if known is None:
        connection.execute(erased_users.insert().values(user_digest=digest, **values))
    else:
        values["refused_through"] = max(refused_through, known.refused_through)
        connection.execute(erased_users.update().where(erased_users.c.user_digest == digest).values(values))
    connection.execute(erasure_state.update().values(erasures=erasures.count + 1, last_erased_at=now))


def refused_through(connection: Connection, user_ids: Iterable[str]) -> dict[str, datetime]:
    """Of those users who were erased: until when their events are refused.

    After this transaction's own insert on PostgreSQL: an erasure that did not wait for it has been committed by then
    (lock_writers).
    """
    erasures = read_erasures(connection)
    if erasures is None or not erasures.count:
        return {}
    return {user_id: row.refused_through for user_id, row in _erased(connection, erasures, user_ids, 0)}


def unsettled(connection: Connection, user_ids: Iterable[str], since: datetime) -> dict[str, datetime]:
    """Of those users who were erased: what was recorded until then may have been made before. Only moments from
    `since` on are sought."""
    erasures = read_erasures(connection)
    if erasures is None or erasures.last_at is None or erasures.last_at + SETTLED < since:
        return {}
    return {user_id: row.erased_at + SETTLED for user_id, row in _erased(connection, erasures, user_ids, 0)}


def erased_since(connection: Connection, erasures: int, user_ids: Collection[str]) -> int:
    """How many of these users were erased after the first `erasures`; no more are until this transaction ends."""
    now = hold_erasures(connection)
    if now.count == erasures:
        return 0
    return sum(1 for _ in _erased(connection, now, user_ids, erasures))


def lock_writers(connection: Connection, timeout_s: float) -> None:
    """Wait for those who are writing events or recommendations, and let no other begin before this one has ended.

    An INSERT holds ROW EXCLUSIVE on its table until its transaction ends, with which SHARE conflicts. So whoever writes
    about a user has either committed before the erasure is noted, and is then erased, or finds it noted. On SQLite the
    transaction is BEGIN IMMEDIATE: no other writes.
    """
    if connection.dialect.name == "postgresql":
        limit_lock_waits(connection, timeout_s)
        connection.execute(sa.text("LOCK TABLE ONLY events IN SHARE MODE"))
        connection.execute(sa.text("LOCK TABLE recommendations IN SHARE MODE"))


def _erased(
    connection: Connection, erasures: Erasures, user_ids: Iterable[str], after: int
) -> "Iterator[tuple[str, sa.Row[tuple[object, ...]]]]":
    """(user, row) of the users among these whose last erasure has a number beyond `after`."""
    wanted = iter(set(user_ids))
    while some := {erasures.digest(user_id): user_id for user_id in islice(wanted, _TOGETHER)}:
        chosen = one_of(connection, erased_users.c.user_digest, list(some))
        query = sa.select(erased_users).where(chosen, erased_users.c.number > after)
        for row in connection.execute(query):
            yield some[row.user_digest], row
