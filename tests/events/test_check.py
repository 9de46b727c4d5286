"""One event at a time, without a store."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.events.service import body_hash, check

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
GOOD: dict[str, Any] = {
    "event_id": "e1",
    "user_id": "u1",
    "item_id": "i1",
    "event_type": "click",
    "occurred_at": "2026-03-01T11:00:00Z",
}


def judged(**changes: Any) -> str:
    """The code of a good event with `changes`, or "valid"."""
    valid, rejected = check([GOOD | changes], now=NOW, clock_tolerance=timedelta(minutes=5))
    assert len(valid) + len(rejected) == 1
    return "valid" if valid else rejected[0].code


def nested(depth: int) -> Any:
    return {"in": nested(depth - 1)} if depth > 1 else {}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"event_id": "x" * 128},
        {"item_id": "Ünï/cødé %2F 😀"},
        {"event_type": "add-to_cart2"},
        {"occurred_at": "1970-01-01T00:00:00Z"},
        {"occurred_at": "2026-03-01T12:05:00+00:00"},
        {"occurred_at": "2026-03-01T06:00:00.123456-05:30"},
        {"value": -3},
        {"value": 2.5},
        {"value": None, "position": None, "properties": None, "recommendation_id": None},
        {"position": 0},
        {"position": 10_000},
        {"recommendation_id": "01890a5d-ac96-774b-bcce-b302099a8057"},
        {"properties": {}},
        {"properties": {"list": [1, 2.5, "x", None, True, {"deep": []}]}},
        {"properties": {"text": "x" * 4085}},
        {"properties": nested(8)},
        {"properties": {"largest": 2**63 - 1, "least": -(2**63)}},
    ],
)
def test_a_well_formed_event_is_valid(changes: dict[str, Any]) -> None:
    assert judged(**changes) == "valid"


@pytest.mark.parametrize(
    "changes",
    [
        {"event_id": ""},
        {"event_id": "x" * 129},
        {"event_id": 7},
        {"user_id": "a\x00b"},
        {"user_id": "a\nb"},
        {"user_id": "\x7f"},
        {"item_id": "\ud800"},
        {"item_id": None},
        {"event_type": "Click"},
        {"event_type": "click\n"},
        {"event_type": "c" * 33},
        {"event_type": "1st"},
        {"occurred_at": "2026-03-01T11:00:00"},
        {"occurred_at": "2026-03-01"},
        {"occurred_at": "2026-13-01T11:00:00Z"},
        {"occurred_at": "1969-12-31T23:59:59Z"},
        {"occurred_at": "0001-01-01T00:00:00+23:59"},
        {"occurred_at": 1_770_000_000},
        {"occurred_at": "1770000000"},
        {"occurred_at": None},
        {"value": "2.5"},
        {"value": True},
        {"value": float("nan")},
        {"value": float("inf")},
        {"value": 2**63},
        {"value": 10**400},
        {"position": -1},
        {"position": 10_001},
        {"position": 1.5},
        {"position": True},
        {"recommendation_id": "not a uuid"},
        {"recommendation_id": ""},
        {"properties": []},
        {"properties": "x"},
        {"properties": {"text": "x" * 4090}},
        {"properties": nested(9)},
        {"properties": nested(400)},
        {"properties": {"nul": "\x00"}},
        {"properties": {"\x00": 1}},
        {"properties": {"lone": ["\udfff"]}},
        {"properties": {"\ud800": 1}},
        {"properties": {"huge": 2**63}},
        {"properties": {"nan": float("nan")}},
        {"colour": "red"},
        {"\ud800": "red"},
    ],
)
def test_a_malformed_event_is_invalid(changes: dict[str, Any]) -> None:
    assert judged(**changes) == "invalid_event"


@pytest.mark.parametrize("value", [None, 1, "event", [], [GOOD], {}, True])
def test_what_is_no_event_at_all_is_invalid(value: object) -> None:
    valid, rejected = check([value], now=NOW, clock_tolerance=timedelta(0))
    assert not valid
    assert (rejected[0].index, rejected[0].event_id, rejected[0].code) == (0, None, "invalid_event")


@pytest.mark.parametrize("moment", ["2026-03-01T12:05:00.000001Z", "9999-12-31T23:59:59Z", "2026-03-01T12:05:01+00:00"])
def test_an_event_beyond_the_tolerance_is_from_the_future(moment: str) -> None:
    assert judged(occurred_at=moment) == "future_event"


def test_a_time_that_no_calendar_holds_in_utc_is_refused() -> None:
    assert judged(occurred_at="9999-12-31T23:59:59-23:59") in ("invalid_event", "future_event")


def test_a_rejection_names_its_place_its_id_and_the_wrong_field() -> None:
    wrong = GOOD | {"event_id": "e2", "position": "3"}
    _, rejected = check([GOOD, wrong], now=NOW, clock_tolerance=timedelta(0))
    assert (rejected[0].index, rejected[0].event_id) == (1, "e2")
    assert rejected[0].detail.startswith("position:")


def hash_of(**changes: Any) -> str:
    valid, _ = check([GOOD | changes], now=NOW, clock_tolerance=timedelta(0))
    return body_hash(valid[0].event)


def test_the_same_content_has_the_same_hash_however_it_is_written() -> None:
    assert hash_of() == hash_of(occurred_at="2026-03-01T12:00:00+01:00")
    assert hash_of() == hash_of(value=None, properties=None)
    assert hash_of(value=1) == hash_of(value=1.0)
    assert hash_of(properties={"a": 1, "b": {"c": 2, "d": 3}}) == hash_of(properties={"b": {"d": 3, "c": 2}, "a": 1})


@pytest.mark.parametrize(
    "changes",
    [
        {"user_id": "u2"},
        {"item_id": "i2"},
        {"event_type": "view"},
        {"occurred_at": "2026-03-01T11:00:00.000001Z"},
        {"value": 0},
        {"position": 0},
        {"properties": {}},
        {"recommendation_id": "01890a5d-ac96-774b-bcce-b302099a8057"},
    ],
)
def test_other_content_has_another_hash(changes: dict[str, Any]) -> None:
    assert hash_of() != hash_of(**changes)
