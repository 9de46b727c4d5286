"""An event as it is sent, and what is said about a batch."""

import math
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from service.kit.fields import UUID_PATTERN, Identifier, rfc3339

MAX_BATCH = 500
MAX_PROPERTIES_BYTES = 4096
MAX_PROPERTIES_DEPTH = 8
INT64 = 2**63
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _instant(value: Any) -> datetime:
    """RFC 3339 text, or an aware datetime from a caller inside the process; not before 1970, in UTC."""
    value = rfc3339(value)
    # ValueError for a 13th month: pydantic reports it
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(value.upper())
    if moment.tzinfo is None:
        raise ValueError("the time zone is missing")
    if moment < EPOCH:
        raise ValueError("times before 1970 are refused")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("the date is out of range") from None


def _number(value: Any) -> Any:
    if isinstance(value, bool) or (isinstance(value, int) and not -INT64 <= value < INT64):
        raise ValueError("a finite number is needed, integers within 64 bits")
    return value


def _properties(value: Any) -> Any:
    """Refuses what one of the stores would change or cannot keep."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError("an object is needed")
    _storable(value, 1)
    if len(orjson.dumps(value)) > MAX_PROPERTIES_BYTES:
        raise ValueError(f"more than {MAX_PROPERTIES_BYTES} bytes")
    return value


def _storable(value: Any, depth: int) -> None:
    if isinstance(value, str):
        if "\x00" in value or not _is_unicode(value):
            raise ValueError("a string holds U+0000 or a lone surrogate, which cannot be stored")
    elif isinstance(value, bool) or value is None:
        pass
    elif isinstance(value, int):
        if not -INT64 <= value < INT64:
            raise ValueError("an integer does not fit into 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number is not finite")
    elif depth > MAX_PROPERTIES_DEPTH:
        raise ValueError(f"nested deeper than {MAX_PROPERTIES_DEPTH}")
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError("a key is no string")
            _storable(key, depth)
            _storable(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _storable(inner, depth + 1)
    else:
        raise ValueError(f"a {type(value).__name__} is no JSON value")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]

_INSTANT_SCHEMA = WithJsonSchema({"type": "string", "format": "date-time"})
_PROPERTIES_SCHEMA = WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "null"}]})


class Event(BaseModel):
    """One interaction of a user with an item. Unknown fields are refused, so that a misspelt one is noticed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    event_id: Identifier
    """Yours, unique for ever: sending the same event again counts once."""
    user_id: Identifier
    item_id: Identifier
    """May be unknown still; the event is kept and trained on once the item has come."""
    event_type: Annotated[str, Field(strict=True, pattern="^[a-z][a-z0-9_-]{0,31}$")]
    occurred_at: Annotated[datetime, BeforeValidator(_instant), _INSTANT_SCHEMA]
    """RFC 3339 with an offset; not before 1970, not in the future."""
    value: Annotated[Finite | None, BeforeValidator(_number)] = None
    """A rating, a price, seconds watched: kept, not used for training yet."""
    recommendation_id: Annotated[str, Field(strict=True, pattern=UUID_PATTERN)] | None = None
    """The recommendation that led to this."""
    position: Annotated[int, Field(strict=True, ge=0, le=10_000)] | None = None
    """Rank at which the item was shown, counted as you like."""
    properties: Annotated[dict[str, Any] | None, BeforeValidator(_properties), _PROPERTIES_SCHEMA] = None
    """Anything else, up to 4 KiB of JSON, nested up to 8 deep."""


class EventBatch(BaseModel):
    """Body of POST /v1/events. Events are checked one by one: a wrong one does not refuse the others."""

    model_config = ConfigDict(extra="forbid")

    events: Annotated[list[Event], Field(min_length=1, max_length=MAX_BATCH)]


class Rejection(BaseModel):
    """An event that was not stored. code: invalid_event, future_event, event_id_conflict or erased_user."""

    index: int
    """Place in the batch, from 0."""
    event_id: str | None
    """Null when the event has none that can be read."""
    code: str
    detail: str


class IngestReport(BaseModel):
    """accepted + duplicates + len(rejected) is the number of events sent."""

    accepted: int
    """New, and durable by now."""
    duplicates: int
    """Known already with the same content, from earlier or from this batch."""
    rejected: list[Rejection]
    unknown_items: int
    """Accepted events whose item is not in the catalogue (yet)."""


class StoredEvent(BaseModel):
    """An event as it was kept."""

    seq: int
    event_id: str
    user_id: str
    item_id: str
    event_type: str
    occurred_at: datetime
    received_at: datetime
    value: float | None
    recommendation_id: str | None
    position: int | None
    properties: dict[str, Any] | None


class EventPage(BaseModel):
    events: list[StoredEvent]
    next_before_seq: int | None
    """Send it as `before_seq` for the next, older page; null on the last."""
