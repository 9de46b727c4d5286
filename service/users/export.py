"""What is held on a user, as lines of JSON: read page by page, however much it is."""

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy.engine import Connection

from service.adapters import repository as adapters
from service.adapters.repository import Adapter, Base
from service.audit import repository as audit
from service.events import repository as events
from service.kit.clock import Clock
from service.kit.db import Database
from service.recommend import repository as recommendations
from service.recommend.history import load_past
from service.settings import Settings
from service.trials import repository as trials
from service.users import repository
from service.users.service import audit_subject
from service.windows import repository as windows

MEDIA_TYPE = "application/x-ndjson"
FORMAT = 1
PAGE = 500

Line = dict[str, Any]


def export_user(database: Database, settings: Settings, user_id: str, *, clock: Clock, actor: str) -> Iterator[bytes]:
    """Everything that the store holds on the user, one JSON object a line, by its `kind`:

    user (first), history (what the model is shown, and what is not recommended again), event, window (sealed, with how
    many of the events lie in it), base and adapter (that may have learnt from them, and through what), recommendation,
    shadow_ranking (what a candidate on trial would have recommended instead), audit, erasure, end (last, with the
    number of lines of each kind; without it the export was cut off).

    Each page is a transaction of its own: what changes meanwhile may be in it or not. The audit log notes the export
    before the first line. Raises StoreUnavailable, here or between two lines.
    """
    now = clock()
    with database.write() as connection:
        erasures = repository.hold_erasures(connection)
        audit.append(connection, now=now, actor=actor, action="user.export", subject=audit_subject(erasures, user_id))
    return _lines(database, settings, user_id, erasures, now)


def _lines(
    database: Database, settings: Settings, user_id: str, erasures: repository.Erasures, now: datetime
) -> Iterator[bytes]:
    counted: Counter[str] = Counter()
    for line in _records(database, settings, user_id, erasures, now):
        counted[line["kind"]] += 1
        yield _line(line)
    yield _line({"kind": "end", "lines": dict(counted)})


def _records(
    database: Database, settings: Settings, user_id: str, erasures: repository.Erasures, now: datetime
) -> Iterator[Line]:
    yield {"kind": "user", "format": FORMAT, "user_id": user_id, "exported_at": now}
    with database.read() as connection:
        past = load_past(
            connection,
            user_id,
            history_items=settings.history_items,
            seen_items=settings.seen_items,
            ignored_types=settings.ignored_event_types,
        )
        ends = windows.ends(connection)
    if past.seen:
        yield {"kind": "history", "latest": past.latest, "seen": past.seen}
    in_window: Counter[int] = Counter()
    first: datetime | None = None
    for event in _events(database, user_id):
        yield {"kind": "event", **event}
        first = event["received_at"] if first is None else min(first, event["received_at"])
        place = bisect_left(ends, (event["seq"], 0))
        if place < len(ends):
            in_window[ends[place][1]] += 1
    yield from _learnt(database, in_window, first)
    for page in _recommendations(database, user_id):
        yield from ({"kind": "recommendation", **recommendation} for recommendation in page)
        with database.read() as connection:
            ranked = trials.shadow_of(connection, [recommendation["recommendation_id"] for recommendation in page])
        yield from ({"kind": "shadow_ranking", **row} for row in ranked)
    with database.read() as connection:
        # Before 0007 the audit log named users by a plain hash.
        plain = f"sha256:{hashlib.sha256(user_id.encode()).hexdigest()}"
        entries = audit.about(connection, [audit_subject(erasures, user_id), plain])
        erased = repository.find(connection, erasures.digest(user_id))
    for entry in entries:
        yield {"kind": "audit", **entry}
    if erased is not None:
        yield {"kind": "erasure", "erased_at": erased.erased_at, "refused_through": erased.refused_through}


def _events(database: Database, user_id: str) -> Iterator[Mapping[str, Any]]:
    after: tuple[datetime, int] | None = None
    while True:
        with database.read() as connection:
            page = events.of_user(connection, user_id, after=after, limit=PAGE)
        yield from page
        if len(page) < PAGE:
            return
        after = (page[-1]["occurred_at"], page[-1]["seq"])


def _recommendations(database: Database, user_id: str) -> Iterator[list[Mapping[str, Any]]]:
    after: tuple[datetime, str] | None = None
    while True:
        with database.read() as connection:
            page = recommendations.of_user(connection, user_id, after=after, limit=PAGE)
        yield page
        if len(page) < PAGE:
            break
        after = (page[-1]["created_at"], page[-1]["recommendation_id"])
    last = ""
    while True:
        with database.read() as connection:
            page = recommendations.named_by_user(connection, user_id, after=last, limit=PAGE)
        yield page
        if len(page) < PAGE:
            return
        last = page[-1]["recommendation_id"]


def _learnt(database: Database, in_window: Mapping[int, int], first: datetime | None) -> Iterator[Line]:
    """Windows with events of the user, and the models that may have learnt from them. first: received of all."""
    with database.read() as connection:
        sealed = [window for number in sorted(in_window) if (window := windows.find(connection, number))]
        bases, made = _models(connection)
    for window in sealed:
        yield {
            "kind": "window",
            "window_id": window.window_id,
            "events": in_window[window.window_id],
            "sealed_at": window.sealed_at,
            "state": window.state.value,
            "base_id": window.base_id,
            "adapter_version": window.candidate_version,
        }
    if first is None:
        return
    taught = {base.base_id for base in bases if base.created_at >= first}  # a base learns from all that is stored
    for base in bases:
        if base.base_id in taught:
            yield {"kind": "base", "base_id": base.base_id, "created_at": base.created_at}
    for adapter, through in learnt_through(made, taught, in_window):
        yield {
            "kind": "adapter",
            "adapter_version": adapter.adapter_version,
            "through": through,
            "state": adapter.state.value,
            "base_id": adapter.base_id,
            "parent_version": adapter.parent_version,
            "window_id": adapter.window_id,
            "created_at": adapter.created_at,
        }


def learnt_through(
    made: list[Adapter], bases: set[str], window_ids: Mapping[int, int] | set[int]
) -> list[tuple[Adapter, str]]:
    """The adapters that may have learnt from these windows or bases: by their own `window`, from their `parent` or
    on their `base`. made: oldest first."""
    found: dict[str, tuple[Adapter, str]] = {}
    for adapter in made:
        if adapter.window_id in window_ids:
            found[adapter.adapter_version] = (adapter, "window")
        elif adapter.parent_version in found:
            found[adapter.adapter_version] = (adapter, "parent")
        elif adapter.base_id in bases:
            found[adapter.adapter_version] = (adapter, "base")
    return list(found.values())


def _models(connection: Connection) -> tuple[list[Base], list[Adapter]]:
    """Every base and adapter, oldest first."""
    return adapters.list_bases(connection)[::-1], adapters.list_adapters(connection, limit=None)[::-1]


def _line(line: Line) -> bytes:
    return orjson.dumps(line, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS) + b"\n"
