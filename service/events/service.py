"""Events: checked one by one, stored once, durable before the caller hears of it."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
from pydantic import ValidationError

from service.audit import repository as audit
from service.catalog import repository as catalog
from service.errors import StoreUnavailable
from service.events import repository
from service.events.schemas import Erasure, Event, EventPage, IngestReport, Rejection, StoredEvent
from service.kit.clock import Clock
from service.kit.db import Database
from service.kit.fields import shown
from service.telemetry import EVENTS, INGEST_SECONDS

OnStored = Callable[[Sequence[Event]], None]
"""Told the events of each transaction once it has ended: they are stored, or nobody knows. Must not raise."""

TOGETHER = 1_000
"""Events in one transaction when a caller hands over more."""
_ATTEMPTS = 4  # of a transaction that PostgreSQL ends because it and another, such as an erasure, wait for each other


@dataclass(frozen=True, slots=True)
class CheckedEvent:
    """A valid event, its place in what was sent, and the hash of its canonical body."""

    index: int
    event: Event
    body_hash: str


def check(
    raw: Sequence[object], *, now: datetime, clock_tolerance: timedelta, first_index: int = 0
) -> tuple[list[CheckedEvent], list[Rejection]]:
    """Split raw events (parsed JSON objects) into valid and rejected ones, both in their order."""
    valid: list[CheckedEvent] = []
    rejected: list[Rejection] = []
    latest = now + clock_tolerance
    for index, value in enumerate(raw, first_index):
        try:
            event = Event.model_validate(value)
        except ValidationError as error:
            rejected.append(Rejection(index=index, event_id=_event_id(value), code="invalid_event", detail=_why(error)))
            continue
        if event.occurred_at > latest:
            detail = f"occurred_at is more than {clock_tolerance.total_seconds():g} s ahead of the server's clock"
            rejected.append(Rejection(index=index, event_id=event.event_id, code="future_event", detail=detail))
            continue
        valid.append(CheckedEvent(index, event, body_hash(event)))
    return valid, rejected


def body_hash(event: Event) -> str:
    """SHA-256 of the event as JSON with sorted keys, times in UTC and every absent field null."""
    return hashlib.sha256(orjson.dumps(vars(event), option=orjson.OPT_SORT_KEYS)).hexdigest()


def ingest(
    database: Database,
    events: Sequence[object],
    *,
    clock: Clock,
    clock_tolerance: timedelta,
    validate_only: bool = False,
    on_stored: OnStored = lambda events: None,
    together: int = TOGETHER,
) -> IngestReport:
    """Store events (parsed JSON objects, any number); committed when it returns, `together` in a transaction.

    Each is accepted, a duplicate (same id and content) or rejected; one never decides over another. With
    `validate_only` the same report is made and nothing is stored. Raises StoreUnavailable: events of earlier
    transactions may be stored then, and sending all of them again is safe.
    """
    total = IngestReport(accepted=0, duplicates=0, rejected=[], unknown_items=0)
    for start in range(0, len(events), together):
        now = clock()
        valid, rejected = check(
            events[start : start + together], now=now, clock_tolerance=clock_tolerance, first_index=start
        )
        if validate_only:
            report = _rehearse(database, valid)
        else:
            with INGEST_SECONDS.time():
                report = _store(database, valid, now, on_stored)
        total.accepted += report.accepted
        total.duplicates += report.duplicates
        total.unknown_items += report.unknown_items
        total.rejected += sorted(rejected + report.rejected, key=lambda rejection: rejection.index)
    if not validate_only:
        EVENTS.labels("accepted").inc(total.accepted)
        EVENTS.labels("duplicate").inc(total.duplicates)
        EVENTS.labels("rejected").inc(len(total.rejected))
        EVENTS.labels("unknown_item").inc(total.unknown_items)
    return total


def _store(database: Database, valid: Sequence[CheckedEvent], now: datetime, on_stored: OnStored) -> IngestReport:
    first: dict[str, CheckedEvent] = {}
    for checked in valid:
        first.setdefault(checked.event.event_id, checked)
    if not first:
        return IngestReport(accepted=0, duplicates=0, rejected=[], unknown_items=0)
    # In order of time, ties as they were sent, so that the sequence follows both.
    ordered = sorted(first.values(), key=lambda c: (c.event.occurred_at, c.index))
    rows = [_row(checked, now) for checked in ordered]
    try:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with database.write() as connection:
                    inserted = repository.insert_new(connection, rows)
                    stored = repository.hashes(connection, first.keys() - inserted)
                    known = catalog.known(connection, {first[event_id].event.item_id for event_id in inserted})
                break
            except StoreUnavailable as error:
                if not _deadlocked(error) or attempt == _ATTEMPTS:
                    raise
    finally:  # a commit whose answer was lost may have been one
        on_stored([checked.event for checked in ordered])
    return _report(valid, {e: first[e].body_hash for e in inserted} | stored, inserted, known)


def _rehearse(database: Database, valid: Sequence[CheckedEvent]) -> IngestReport:
    first: dict[str, CheckedEvent] = {}
    for checked in valid:
        first.setdefault(checked.event.event_id, checked)
    with database.read() as connection:
        stored = repository.hashes(connection, first.keys())
        new = first.keys() - stored.keys()
        known = catalog.known(connection, {first[event_id].event.item_id for event_id in new})
    return _report(valid, {e: first[e].body_hash for e in new} | stored, set(new), known)


def _report(
    valid: Sequence[CheckedEvent], hashes: Mapping[str, str], new: set[str], known_items: set[str]
) -> IngestReport:
    """`hashes`: of every id, as the store now has it; `new`: the ids of which the first occurrence was stored."""
    report = IngestReport(accepted=0, duplicates=0, rejected=[], unknown_items=0)
    counted: set[str] = set()
    for checked in valid:
        event_id = checked.event.event_id
        if event_id in new and event_id not in counted:
            counted.add(event_id)
            report.accepted += 1
            report.unknown_items += checked.event.item_id not in known_items
        elif hashes.get(event_id, checked.body_hash) == checked.body_hash:  # gone: its user was erased meanwhile
            report.duplicates += 1
        else:
            detail = "this event_id was used for an event with other content; give each event an id of its own"
            report.rejected.append(
                Rejection(index=checked.index, event_id=event_id, code="event_id_conflict", detail=detail)
            )
    return report


def _row(checked: CheckedEvent, now: datetime) -> dict[str, Any]:
    return {**vars(checked.event), "body_hash": checked.body_hash, "received_at": now}


def _deadlocked(error: StoreUnavailable) -> bool:
    return getattr(getattr(error.__cause__, "orig", None), "sqlstate", None) == "40P01"


def _event_id(value: object) -> str | None:
    found = value.get("event_id") if isinstance(value, Mapping) else None
    return found if isinstance(found, str) and len(found) <= 128 and shown(found) == found else None


def _why(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    places = ((".".join(str(part) for part in problem["loc"]), problem["msg"]) for problem in problems[:3])
    return shown("; ".join(f"{place}: {message}" if place else message for place, message in places))


def history(database: Database, user_id: str, *, limit: int, before_seq: int | None) -> EventPage:
    """The user's events, newest first; an unknown user has none."""
    with database.read() as connection:
        rows = repository.page(connection, user_id, limit=limit + 1, before_seq=before_seq)
    found = [StoredEvent.model_validate(row) for row in rows[:limit]]
    return EventPage(events=found, next_before_seq=found[-1].seq if len(rows) > limit else None)


def erase_user(
    database: Database,
    user_id: str,
    *,
    clock: Clock,
    actor: str,
    on_erased: Callable[[str], None] = lambda user_id: None,
) -> Erasure:
    """Erase the user's events and recommendations at once; the audit log keeps a hash of the id and the counts.

    on_erased: told the user once the transaction has ended; must not raise.
    """
    digest = hashlib.sha256(user_id.encode()).hexdigest()
    try:
        with database.write(patient=True) as connection:
            gone, forgotten = repository.erase_user(connection, user_id)
            details = {"events": gone, "recommendations": forgotten}
            audit.append(
                connection, now=clock(), actor=actor, action="user.erase", subject=f"sha256:{digest}", details=details
            )
    finally:  # as in _store
        on_erased(user_id)
    return Erasure(events=gone, recommendations=forgotten)
