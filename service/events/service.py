"""Events: checked one by one, stored once, durable before the caller hears of it."""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
from pydantic import ValidationError
from sqlalchemy.engine import Connection

from service.catalog import repository as catalog
from service.events import repository
from service.events.schemas import Event, EventPage, IngestReport, Rejection, StoredEvent
from service.kit.clock import Clock
from service.kit.db import CHECK, DEADLOCK, Database, again
from service.kit.fields import shown
from service.telemetry import EVENTS, INGEST_SECONDS
from service.users import repository as users

OnStored = Callable[[Sequence[Event]], None]
"""Told the events of each transaction once it has ended: they are stored, or nobody knows. Must not raise."""

TOGETHER = 1_000
"""Events in one transaction when a caller hands over more."""


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


def known_ids(database: Database, event_ids: Collection[str]) -> set[str]:
    """Those of `event_ids` that are stored. Raises StoreUnavailable."""
    with database.read() as connection:
        return set(repository.hashes(connection, event_ids))


def _store(database: Database, valid: Sequence[CheckedEvent], now: datetime, on_stored: OnStored) -> IngestReport:
    first: dict[str, CheckedEvent] = {}
    for checked in valid:
        first.setdefault(checked.event.event_id, checked)
    if not first:
        return IngestReport(accepted=0, duplicates=0, rejected=[], unknown_items=0)
    # In order of time, ties as they were sent, so that the sequence follows both.
    ordered = sorted(first.values(), key=lambda c: (c.event.occurred_at, c.index))
    rows = [_row(checked, now) for checked in ordered]

    def write() -> tuple[set[str], dict[str, str], set[str], set[str]]:
        with database.write() as connection:
            inserted, stored = _insert(connection, rows)
            refused = _of_erased_users(connection, [first[event_id].event for event_id in inserted])
            repository.delete(connection, refused)
            erased: set[str] = set().union(*refused.values())
            inserted -= erased
            known = catalog.known(connection, {first[event_id].event.item_id for event_id in inserted})
            return inserted, stored, erased, known

    try:
        # An erasure and it waited for each other, or a partition was made where its events were to go.
        inserted, stored, erased, known = again(write, DEADLOCK, CHECK)
    finally:  # a commit whose answer was lost may have been one
        on_stored([checked.event for checked in ordered])
    return _report(valid, {e: first[e].body_hash for e in inserted} | stored, inserted, known, erased)


def _insert(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> tuple[set[str], dict[str, str]]:
    """The ids of the rows that are new, and the others' hashes as the store has them.

    On PostgreSQL an erasure may come between the two looks at an id; nobody has it then, so its row goes in after all.
    """
    inserted: set[str] = set()
    stored: dict[str, str] = {}
    while left := [row for row in rows if row["event_id"] not in inserted and row["event_id"] not in stored]:
        inserted |= repository.insert_new(connection, left)
        stored |= repository.hashes(connection, {row["event_id"] for row in left} - inserted)
    return inserted, stored


def _rehearse(database: Database, valid: Sequence[CheckedEvent]) -> IngestReport:
    first: dict[str, CheckedEvent] = {}
    for checked in valid:
        first.setdefault(checked.event.event_id, checked)
    with database.read() as connection:
        stored = repository.hashes(connection, first.keys())
        new = first.keys() - stored.keys()
        refused = _of_erased_users(connection, [first[event_id].event for event_id in new])
        erased = set().union(*refused.values())
        new -= erased
        known = catalog.known(connection, {first[event_id].event.item_id for event_id in new})
    return _report(valid, {e: first[e].body_hash for e in new} | stored, new, known, erased)


def _of_erased_users(connection: Connection, new: Sequence[Event]) -> dict[str, set[str]]:
    """user -> ids of those that occurred before the user was erased: a client had kept them and sent them again."""
    through = users.refused_through(connection, {event.user_id for event in new})
    found: dict[str, set[str]] = {}
    for event in new if through else ():
        if event.user_id in through and event.occurred_at <= through[event.user_id]:
            found.setdefault(event.user_id, set()).add(event.event_id)
    return found


def _report(
    valid: Sequence[CheckedEvent], hashes: Mapping[str, str], new: set[str], known_items: set[str], erased: set[str]
) -> IngestReport:
    """`hashes`: of every id, as the store now has it; `new`: the ids of which the first occurrence was stored;
    `erased`: ids of events that their user's erasure covers.
    """
    report = IngestReport(accepted=0, duplicates=0, rejected=[], unknown_items=0)
    counted: set[str] = set()
    for checked in valid:
        event_id = checked.event.event_id
        if event_id in new and event_id not in counted:
            counted.add(event_id)
            report.accepted += 1
            report.unknown_items += checked.event.item_id not in known_items
        elif event_id in erased:
            detail = "it occurred before its user was erased; send it no more"
            report.rejected.append(Rejection(index=checked.index, event_id=event_id, code="erased_user", detail=detail))
        elif hashes[event_id] == checked.body_hash:
            report.duplicates += 1
        else:
            detail = "this event_id was used for an event with other content; give each event an id of its own"
            report.rejected.append(
                Rejection(index=checked.index, event_id=event_id, code="event_id_conflict", detail=detail)
            )
    return report


def _row(checked: CheckedEvent, now: datetime) -> dict[str, Any]:
    return {**vars(checked.event), "body_hash": checked.body_hash, "received_at": now}


def _event_id(value: object) -> str | None:
    found = value.get("event_id") if isinstance(value, Mapping) else None
    return found if isinstance(found, str) and len(found) <= 128 and shown(found) == found else None


def _why(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    places = (
        (".".join(str(part) for part in problem["loc"]), problem["msg"].removeprefix("Value error, "))
        for problem in problems[:3]
    )
    return shown("; ".join(f"{place}: {message}" if place else message for place, message in places))


def history(database: Database, user_id: str, *, limit: int, before_seq: int | None) -> EventPage:
    """The user's events, newest first; an unknown user has none."""
    with database.read() as connection:
        rows = repository.page(connection, user_id, limit=limit + 1, before_seq=before_seq)
    found = [StoredEvent.model_validate(row) for row in rows[:limit]]
    return EventPage(events=found, next_before_seq=found[-1].seq if len(rows) > limit else None)
