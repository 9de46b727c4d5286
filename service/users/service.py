"""Erasing a user: everything the store holds goes, and nothing of it comes back (docs/decisions/0030)."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from service.audit import repository as audit
from service.errors import Overtaken
from service.events import repository as events
from service.kit.clock import Clock
from service.kit.db import DEADLOCK, LOCK_TIMEOUT, Database, again
from service.recommend import repository as recommendations
from service.users import repository
from service.users.schemas import Erasure

LOCK_TIMEOUT_S = 1.0  # events wait behind it; RELIABILITY 14 gives them 2 s


def erase_user(
    database: Database,
    user_id: str,
    *,
    clock: Clock,
    actor: str,
    on_erased: Callable[[str], None] = lambda user_id: None,
) -> Erasure:
    """Erase the user's events and recommendations; the audit log keeps a keyed hash of the id and the counts.

    When it returns, whatever was on its way is gone too: an event that occurred until now is refused from now on,
    whoever sends it, and a recommendation that was being made is not recorded. Repeating it is safe, and completes one
    that was cut off. on_erased: told the user once the transaction has ended; must not raise. Raises StoreUnavailable
    when a slow writer is in the way for some seconds, or there is no store.
    """
    through = again(lambda: _note(database, user_id, clock()), DEADLOCK, LOCK_TIMEOUT)
    try:
        return again(lambda: _delete(database, user_id, through, clock(), actor), DEADLOCK, LOCK_TIMEOUT)
    finally:  # a commit whose answer was lost may have been one
        on_erased(user_id)


def _note(database: Database, user_id: str, now: datetime) -> datetime:
    """From the end of this transaction on, nothing of the user's past is written; all that was is visible.

    Returns through when it is past: an event that occurred later, accepted from then on, is a new user's.
    """
    with database.write() as connection:
        repository.lock_writers(connection, LOCK_TIMEOUT_S)
        erasures = repository.hold_erasures(connection)
        latest = events.last_occurred_at(connection, user_id)  # a client's clock may be ahead, within the tolerance
        through = now if latest is None else max(now, latest)
        repository.note(connection, erasures, erasures.digest(user_id), now, through)
    return through


def _delete(database: Database, user_id: str, through: datetime, now: datetime, actor: str) -> Erasure:
    with database.write(patient=True) as connection:
        gone, named = events.delete_of_user(connection, user_id, through)
        forgotten = recommendations.delete_of_user(connection, user_id, named)
        details = {"events": gone, "recommendations": forgotten}
        subject = audit_subject(repository.hold_erasures(connection), user_id)
        audit.append(connection, now=now, actor=actor, action="user.erase", subject=subject, details=details)
    return Erasure(events=gone, recommendations=forgotten)


@dataclass(frozen=True, slots=True)
class Learners:
    """Users whose events a model learns from, read after so many erasures."""

    user_ids: tuple[str, ...]
    erasures: int


def count_erasures(connection: Connection) -> int:
    """To be asked before the events that a model learns from are read."""
    erasures = repository.read_erasures(connection)
    return 0 if erasures is None else erasures.count


def count_erased(database: Database, learners: Learners) -> int:
    """How many of them were erased since their events were read."""
    with database.write() as connection:
        return repository.erased_since(connection, learners.erasures, learners.user_ids)


def require_none_erased(connection: Connection, learners: Learners) -> None:
    """Raises Overtaken when one of them was erased since their events were read; none is until the transaction ends."""
    if gone := repository.erased_since(connection, learners.erasures, learners.user_ids):
        raise Overtaken(
            f"{gone} of the users that it learnt from were erased meanwhile; the window is trained again without them"
        )


def audit_subject(erasures: repository.Erasures, user_id: str) -> str:
    """What the audit log calls the user: nobody without the store can tell who that is, however short ids are."""
    return f"hmac-sha256:{erasures.digest(user_id).hex()}"
