"""Rows of a table into events as `POST /v1/events` has them, each with a name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from uuid_utils import NAMESPACE_OID, uuid5  # the standard library's, several times as fast

from service.events.schemas import Event
from trainer.formats import Row, Table
from trainer.import_report import ImportReport
from trainer.moments import Moments


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Events as `POST /v1/events` has them, unchecked, and their lines. named: all are named after their content."""

    events: list[dict[str, Any]]
    lines: list[int]
    named: bool


class EventReader:
    """Rows into events, in order."""

    def __init__(self, table: Table, event_type: str, moments: Moments, distinct: bool, report: ImportReport) -> None:
        self._names = [name for name in Event.model_fields if table.open or name in table.columns]
        self._event_type, self._moments, self._distinct, self._report = event_type, moments, distinct, report
        self._head = table.head
        self._latest: datetime | None = None

    def batch(self, rows: Sequence[Row]) -> tuple[EventBatch, list[tuple[int, str]]]:
        """The events, and the line and fault of each row that is none."""
        events, lines, wrong, named = [], [], [], True
        for row in rows:
            try:
                event = self._event(row)
            except ValueError as error:
                wrong.append((row.line, str(error)))
                continue
            moment = _moment(event.get("occurred_at"))
            if moment is not None:
                self._report.out_of_order += self._latest is not None and moment < self._latest
                self._latest = moment
            if "event_id" in event:
                named = False
            else:
                event["event_id"] = self._name(event, moment, row.line - self._head)
            events.append(event)
            lines.append(row.line)
        return EventBatch(events, lines, named), wrong

    def _event(self, row: Row) -> dict[str, Any]:
        """The row as `POST /v1/events` has it, unchecked.

        Raises ValueError for text that does not turn into its type.
        """
        if row.problem is not None:
            raise ValueError(row.problem)
        values = row.values
        event = {
            name: _typed(name, value) for name in self._names if (value := values.get(name)) is not None and value != ""
        }
        if "occurred_at" in event:
            event["occurred_at"] = self._moments.occurred_at(event["occurred_at"])
        elif not _absent(values, "timestamp"):
            event["occurred_at"] = self._moments.timestamp(values["timestamp"])
        event.setdefault("event_type", self._event_type)
        return event

    def _name(self, event: Mapping[str, Any], moment: datetime | None, line: int) -> str:
        """Of what it says and its line below the header, which is the same however the lines above it were read."""
        said = [None if self._distinct else line, {**event, "occurred_at": moment}]
        try:
            content = orjson.dumps(said, option=orjson.OPT_SORT_KEYS).decode()
        except TypeError:  # a value that no event can have: it will be refused
            content = str(line)
        return str(uuid5(NAMESPACE_OID, content))


def _moment(value: Any) -> datetime | None:
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).upper())
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _absent(values: Mapping[str, Any], name: str) -> bool:
    return values.get(name) in (None, "")


def _typed(name: str, value: Any) -> Any:
    """Text files know text only; ids may be whole numbers elsewhere."""
    if isinstance(value, str) and name not in ("value", "position", "properties"):
        return value
    if name in ("user_id", "item_id", "event_id") and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        return value
    try:
        match name:
            case "value":
                return float(value)
            case "position":
                return int(value)
            case "properties":
                return orjson.loads(value)
    except ValueError as error:  # orjson's too
        wanted = {"value": "a number", "position": "a whole number", "properties": "a JSON object"}[name]
        raise ValueError(f"{name} is {value[:40]!r}; {wanted} is needed") from error
    return value
