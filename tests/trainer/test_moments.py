"""Times in every unit and with and without a zone."""

from datetime import UTC, date, datetime
from typing import Any

import pytest

from service.errors import InvalidRequest
from trainer.moments import Moments, Unit

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECONDS = 1_772_366_400


@pytest.mark.parametrize(
    "value", [SECONDS, str(SECONDS), f" {SECONDS}.0", SECONDS * 10**3, SECONDS * 10**6, SECONDS * 10**9]
)
def test_the_unit_is_seen_by_the_size(value: Any) -> None:
    assert Moments().timestamp(value) == NOON


def test_a_named_unit_is_taken_at_its_word() -> None:
    assert Moments(Unit.MILLISECONDS).timestamp(1_000) == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
    with pytest.raises(ValueError, match="is --timestamp-unit ms, us or ns meant"):
        Moments(Unit.SECONDS).timestamp(SECONDS * 1000)


@pytest.mark.parametrize("value", ["nan", float("nan"), -1, "-0.5", "inf", 10**30, True, "1_000", "soon", "", [1]])
def test_what_is_no_time_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="is no time between 1970 and 9999"):
        Moments().timestamp(value)


def test_a_time_without_a_zone_needs_one() -> None:
    for value in ("2026-03-01 12:00:00", datetime(2026, 3, 1, 12), date(2026, 3, 1)):
        with pytest.raises(ValueError, match="import with --timezone"):
            Moments().occurred_at(value)
    assert Moments(zone="UTC").occurred_at("2026-03-01 12:00:00") == NOON
    assert Moments(zone="Europe/Berlin").occurred_at("2026-03-01T13:00:00") == NOON
    assert Moments(zone="UTC").timestamp("2026-03-01") == datetime(2026, 3, 1, tzinfo=UTC)


def test_a_time_with_a_zone_keeps_it_whatever_is_given() -> None:
    berlin = Moments(zone="Europe/Berlin")
    assert berlin.occurred_at("2026-03-01T12:00:00Z") == "2026-03-01T12:00:00Z"
    assert berlin.timestamp("2026-03-01T12:00:00+00:00") == NOON


def test_an_unknown_zone_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'Mars/Base' is not known"):
        Moments(zone="Mars/Base")
