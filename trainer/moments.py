"""Times as files write them: numbers in some unit, or text with or without a zone."""

import math
import re
from datetime import UTC, date, datetime, time
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

from service.errors import InvalidRequest
from trainer.datasets import LATEST_TIMESTAMP, number_of

_OFFSET = re.compile(r"(?:[Zz]|[+-]\d\d:?\d\d(?::?\d\d)?)$", re.ASCII)


class Unit(StrEnum):
    """Of a timestamp. auto: what cannot be seconds (after the year 9999) is milliseconds, and so on up."""

    AUTO = "auto"
    SECONDS = "s"
    MILLISECONDS = "ms"
    MICROSECONDS = "us"
    NANOSECONDS = "ns"


_PER_SECOND = {Unit.SECONDS: 1, Unit.MILLISECONDS: 10**3, Unit.MICROSECONDS: 10**6, Unit.NANOSECONDS: 10**9}


class Moments:
    """Turns what a file says into aware datetimes. zone: of times that name none; None refuses them."""

    def __init__(self, unit: Unit = Unit.AUTO, zone: str | None = None) -> None:
        """Raises InvalidRequest for a zone that is not known."""
        self._unit = unit
        try:
            self._zone = None if zone is None else ZoneInfo(zone)
        except (KeyError, ValueError, OSError) as error:
            raise InvalidRequest(
                f"the time zone {zone!r} is not known; name one such as UTC or Europe/Berlin"
            ) from error

    def timestamp(self, value: Any) -> datetime:
        """Of a number of units since 1970 or its text, or of a date. Raises ValueError saying what is wrong."""
        if isinstance(value, date):
            return self.written(value)
        number = number_of(value)
        if math.isnan(number) and isinstance(value, str) and (moment := _parsed(value)) is not None:
            return self.written(moment)
        per_second = _PER_SECOND.get(self._unit) or next(
            (some for some in _PER_SECOND.values() if number <= LATEST_TIMESTAMP * some), 1
        )
        seconds = number / per_second
        if not 0 <= seconds <= LATEST_TIMESTAMP:
            hint = "; is --timestamp-unit ms, us or ns meant?" if seconds > LATEST_TIMESTAMP else ""
            raise ValueError(
                f"timestamp {str(value)[:40]!r} is no time between 1970 and 9999 in {_NAMES[self._unit]}, "
                f"nor a date such as 2026-03-01T12:00:00Z{hint}"
            )
        return datetime.fromtimestamp(seconds, UTC)

    def occurred_at(self, value: Any) -> Any:
        """As an event takes it: text with its offset as it is. Raises ValueError for a time without a zone."""
        if isinstance(value, date):
            return self.written(value)
        if not isinstance(value, str) or _OFFSET.search(value):
            return value
        moment = _parsed(value)
        return value if moment is None else self.written(moment)

    def written(self, moment: date) -> datetime:
        """`moment` with a zone; a day is its midnight. Raises ValueError when neither it nor --timezone names one."""
        whole = moment if isinstance(moment, datetime) else datetime.combine(moment, time())
        if whole.tzinfo is not None:
            return whole
        if self._zone is None:
            raise ValueError("the time zone is missing; import with --timezone and the zone that is meant, such as UTC")
        try:
            return whole.replace(tzinfo=self._zone).astimezone(UTC)
        except OverflowError:
            raise ValueError("the date is out of range") from None


_NAMES = {
    Unit.AUTO: "seconds, milliseconds, microseconds or nanoseconds",
    Unit.SECONDS: "seconds",
    Unit.MILLISECONDS: "milliseconds",
    Unit.MICROSECONDS: "microseconds",
    Unit.NANOSECONDS: "nanoseconds",
}


def _parsed(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text.strip().upper())
    except ValueError:
        return None
