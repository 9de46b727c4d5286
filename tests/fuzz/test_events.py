"""Any JSON value may be sent as an event: it is refused with a reason, or stored as it is, on both databases alike."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import example, given
from hypothesis import strategies as st

from service.errors import InvalidRequest
from service.events.endpoints import parse_batch
from service.events.schemas import Event
from service.events.service import body_hash, check, ingest
from service.events.tables import event_ids, events
from service.kit.db import Database
from tests.conftest import SetClock
from tests.fuzz.inputs import any_json, any_number, any_text, deep, edited, fuzz, worded

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TOLERANCE = timedelta(minutes=5)
VALID: dict[str, Any] = {
    "event_id": "e",
    "user_id": "u",
    "item_id": "i",
    "event_type": "click",
    "occurred_at": "2026-03-01T11:00:00Z",
    "value": 4.5,
    "recommendation_id": "01953f3e-0000-7000-8000-000000000000",
    "position": 3,
    "properties": {"a": [1, {"b": None}], "é": 1.5},
}

identifiers = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=128)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2026, 3, 1)).flatmap(
    lambda moment: st.sampled_from(["Z", "+00:00", "-23:59", "+14:00"]).map(lambda offset: moment.isoformat() + offset)
)
keepable: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=10), inner, max_size=3
        )
    ),
    max_leaves=10,
)
nearly_right = st.fixed_dictionaries(
    {},
    optional={
        name: st.just(value) | any_json | st.text("0123456789-T:.Z+ ", max_size=30) | any_number
        for name, value in VALID.items()
    }
    | {"more": any_json},
).map(lambda changes: VALID | changes)
right = st.fixed_dictionaries(
    {
        "event_id": identifiers,
        "user_id": identifiers,
        "item_id": identifiers,
        "event_type": st.from_regex(r"[a-z][a-z0-9_-]{0,31}", fullmatch=True),
        "occurred_at": moments,
    },
    optional={
        "value": st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63 - 1),
        "position": st.none() | st.integers(0, 10_000),
        "properties": st.none() | st.dictionaries(st.just("k") | st.text("ab", max_size=3), keepable, max_size=3),
        "recommendation_id": st.none() | st.uuids().map(str),
    },
)


def judged(values: list[object]) -> tuple[list[Event], int]:
    valid, rejected = check(values, now=NOW, clock_tolerance=TOLERANCE)
    assert sorted([found.index for found in valid] + [found.index for found in rejected]) == list(range(len(values)))
    for rejection in rejected:
        assert rejection.code in ("invalid_event", "future_event")
        assert rejection.detail
        rejection.model_dump_json()  # what the reply holds can be sent
    return [found.event for found in valid], len(rejected)


@fuzz(200)
@given(st.lists(any_json | nearly_right, max_size=4))
@example([{"\ud800": 1}])
@example([VALID | {"properties": {"\ud800": 1}}])
@example([VALID | {"properties": {"a": deep(5_000)}}])
@example([VALID | {"position": 10**5000}])
@example([VALID | {"occurred_at": "9999-12-31T23:59:59-23:59"}, VALID | {"occurred_at": "0001-01-01T00:00:00+23:59"}])
@example([VALID | {"event_id": "\ud800" * 600}])
def test_any_value_is_accepted_or_refused_with_a_reason_that_can_be_sent(values: list[object]) -> None:
    for event in judged(values)[0]:
        assert len(body_hash(event)) == 64


@fuzz(150)
@given(
    edited(json.dumps({"events": [VALID]}).encode())
    | st.binary(max_size=200)
    | any_json.map(json.dumps).map(str.encode)
)
@example(b'{"events": [' + b"[" * 100_000)
@example(b'{"events": [' + b"9" * 5_000 + b"]}")
@example(b'{"\\ud800": 1, "events": [1]}')
def test_any_body_is_a_batch_or_an_invalid_request(body: bytes) -> None:
    try:
        batch = parse_batch(body)
    except InvalidRequest as refused:
        worded(refused)
    else:
        judged(batch)


@pytest.fixture
def clock() -> SetClock:
    return SetClock(NOW)


def same_json(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON, whose numbers are of one kind: PostgreSQL gives 4e16 back as an integer."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    if isinstance(one, float) != isinstance(other, float) and not isinstance(one, bool) and not isinstance(other, bool):
        return isinstance(one, int | float) and isinstance(other, int | float) and float(one) == float(other)
    return type(one) is type(other) and one == other


@fuzz(20)
@given(sent=st.lists(right, min_size=1, max_size=5, unique_by=lambda event: event["event_id"]))
@example(sent=[VALID | {"event_id": "float", "properties": {"a": 1e22, "b": 5e-324, "c": -0.0, "d": 1e308}}])
@example(sent=[VALID | {"event_id": "whole float", "properties": {"a": 4.190743050999995e16}}])
@example(sent=[VALID | {"event_id": "zero", "value": -0.0}, VALID | {"event_id": "huge", "value": 2**63 - 1}])
@example(sent=[VALID | {"event_id": "ticks", "occurred_at": "2026-02-01T00:00:00.123456789+00:01"}])
def test_what_is_accepted_is_stored_as_it_is_and_known_when_it_comes_again(
    database: Database, clock: SetClock, sent: list[dict[str, Any]]
) -> None:
    valid, rejected = check(sent, now=NOW, clock_tolerance=TOLERANCE)
    first = ingest(database, sent, clock=clock, clock_tolerance=TOLERANCE)
    again = ingest(database, sent, clock=clock, clock_tolerance=TOLERANCE)
    assert [r.code for r in first.rejected if r.code != "event_id_conflict"] == [r.code for r in rejected]
    assert first.rejected == again.rejected  # an id of an earlier example is the same conflict again
    assert first.accepted + first.duplicates == again.duplicates
    conflicts = {r.event_id for r in first.rejected}
    with database.read() as connection:
        for found in valid:
            if found.event.event_id in conflicts:
                continue
            kept = connection.execute(sa.select(events).where(events.c.event_id == found.event.event_id)).one()._mapping
            stored = Event.model_validate({name: kept[name] for name in Event.model_fields})
            plain = {"properties": None}
            assert stored.model_copy(update=plain) == found.event.model_copy(update=plain)
            assert same_json(stored.properties, found.event.properties)
            hashed = sa.select(event_ids.c.body_hash).where(event_ids.c.event_id == found.event.event_id)
            assert connection.scalar(hashed).hex() == found.body_hash


@fuzz(100)
@given(any_text | any_json)
def test_an_unreadable_event_id_is_shown_as_none_or_as_it_was_sent(event_id: object) -> None:
    (rejection,) = check([{"event_id": event_id}], now=NOW, clock_tolerance=TOLERANCE)[1]
    assert rejection.event_id in (None, event_id)
    rejection.model_dump_json()
