"""Files of items and events into the store, in batches; to go on after a failure, run it again."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import orjson
from uuid_utils import NAMESPACE_OID, UUID, uuid5  # the standard library's, several times as fast

from service.catalog.schemas import Item
from service.catalog.service import put_items
from service.errors import StoreUnavailable
from service.events import partitions
from service.events.schemas import Event, IngestReport
from service.events.service import OnStored, ingest
from service.kit.clock import Clock
from service.kit.db import Database
from service.kit.files import sha256_file
from trainer.datasets import item_of, timestamp_of
from trainer.tabular import Row, Table

BATCH = 500
"""Rows in a transaction of SQLite, which has one writer at a time."""
COPIED_EVENTS, COPIED_ITEMS = 10_000, 5_000
"""Rows in a transaction of PostgreSQL: many for COPY, few enough that closing a window waits less than its second."""
KEPT = 1_000  # refusals in the report and in --json
EVENT_TYPE = "interaction"
EVENT_PARTITION = timedelta(days=30)
_ITEM_COLUMNS = frozenset(Item.model_fields)
_EVENT_COLUMNS = frozenset({*Event.model_fields, "timestamp"})
_AVAILABLE = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

OnBatch = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that was not imported. line: as Row counts."""

    line: int
    code: str
    detail: str


@dataclass(slots=True)
class ImportReport:
    """What became of a file's rows.

    outcomes: how many were created, updated or unchanged (items), accepted or duplicates (events). refusals: the first
    1,000 of `refused`. unknown_items: accepted events whose item is not in the catalogue (yet). out_of_order: events
    that lie before the row above them.
    """

    outcomes: dict[str, int]
    refused: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    ignored_columns: list[str] = field(default_factory=list)
    unknown_items: int = 0
    out_of_order: int = 0

    @property
    def imported(self) -> int:
        """Rows that the store now holds, from this run or an earlier one."""
        return sum(self.outcomes.values())

    def refuse(self, line: int, code: str, detail: str) -> None:
        self.refused += 1
        if len(self.refusals) < KEPT:
            self.refusals.append(Refusal(line, code, detail))


def import_items(database: Database, clock: Clock, table: Table, on_batch: OnBatch = lambda: None) -> ImportReport:
    """Put the items of a table with item_id, title and, if there, categories, brand, description and available.

    A wrong row or a repeated id is refused, the others go in, some in each transaction. Raises DatasetError where the
    file cannot be read on, StoreUnavailable; what was committed by then stays, and importing it again changes nothing.
    """
    table.require("item_id", "title")
    report = ImportReport({"created": 0, "updated": 0, "unchanged": 0}, ignored_columns=_ignored(table, _ITEM_COLUMNS))
    first: dict[str, int] = {}
    for batch in _batches(table, _together(database, COPIED_ITEMS)):
        items = []
        for row in batch:
            try:
                item = _item(row)
                if item.item_id in first:
                    raise ValueError(f"{item.item_id!r} occurs in {table.unit} {first[item.item_id]} already")
            except ValueError as error:
                report.refuse(row.line, "invalid_item", str(error))
                continue
            first[item.item_id] = row.line
            items.append(item)
        with _told_how_to_go_on(report):
            put = put_items(database, clock, items)
        for outcome in report.outcomes:
            report.outcomes[outcome] += getattr(put, outcome)
        on_batch()
    return report


def import_events(
    database: Database,
    clock: Clock,
    table: Table,
    *,
    clock_tolerance: timedelta,
    event_type: str = EVENT_TYPE,
    event_partition: timedelta = EVENT_PARTITION,
    on_batch: OnBatch = lambda: None,
    on_stored: OnStored = lambda events: None,
) -> ImportReport:
    """Store the events of a table with user_id, item_id, and timestamp (unix seconds) or occurred_at (RFC 3339).

    Any other field of `POST /v1/events` may be a column. Without an event_id an event is named after the file's
    content and its line, so that importing the same file again counts nothing twice; a changed file is another file,
    which is why one that cannot be read to its end is refused as a whole. A wrong row is refused, the others go in.
    event_partition: see ADAPTIDE_EVENT_PARTITION.
    Raises DatasetError, StoreUnavailable; what was committed by then stays.
    """
    table.require("user_id", "item_id", "occurred_at" if "occurred_at" in table.columns else "timestamp")
    for _ in table.rows():
        pass
    namespace = uuid5(NAMESPACE_OID, sha256_file(table.path))
    names = [name for name in table.columns if name in Event.model_fields]
    report = ImportReport({"accepted": 0, "duplicates": 0}, ignored_columns=_ignored(table, _EVENT_COLUMNS))
    latest: datetime | None = None
    together = _together(database, COPIED_EVENTS)

    def store(events: list[dict[str, Any]]) -> IngestReport:
        with suppress(StoreUnavailable):  # somebody is in the way: the net takes the events meanwhile
            partitions.ensure(database, event_partition)
        return ingest(
            database, events, clock=clock, clock_tolerance=clock_tolerance, together=together, on_stored=on_stored
        )

    def settle(stored: Future[IngestReport], lines: list[int]) -> None:
        with _told_how_to_go_on(report):
            done = stored.result()
        for rejection in done.rejected:
            report.refuse(lines[rejection.index], rejection.code, rejection.detail)
        report.outcomes["accepted"] += done.accepted
        report.outcomes["duplicates"] += done.duplicates
        report.unknown_items += done.unknown_items
        on_batch()

    # The store takes one batch while the next one is read; never more, so that memory stays bounded.
    with _rare_collections(), ThreadPoolExecutor(1, "import-events") as writer:
        waiting: tuple[Future[IngestReport], list[int]] | None = None
        for batch in _batches(table, together):
            events, lines, wrong = [], [], []
            for row in batch:
                try:
                    event = _event(row, names, namespace, event_type)
                except ValueError as error:
                    wrong.append((row.line, str(error)))
                    continue
                moment = _moment(event.get("occurred_at"))
                if moment is not None:
                    report.out_of_order += latest is not None and moment < latest
                    latest = moment
                events.append(event)
                lines.append(row.line)
            if waiting is not None:
                settle(*waiting)
            for line, why in wrong:
                report.refuse(line, "invalid_event", why)
            waiting = writer.submit(store, events), lines
        if waiting is not None:
            settle(*waiting)
    return report


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Rows by the ten thousand make the garbage collector look again and again for cycles that they do not have."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 50, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _together(database: Database, copied: int) -> int:
    return copied if database.dialect == "postgresql" else BATCH


def _batches(table: Table, size: int) -> Iterator[list[Row]]:
    rows = table.rows()
    while batch := list(islice(rows, size)):
        yield batch


def _ignored(table: Table, known: frozenset[str]) -> list[str]:
    return [name for name in table.columns if name not in known]


def _item(row: Row) -> Item:
    if row.problem is not None:
        raise ValueError(row.problem)
    available = row.values.get("available")
    if available not in (None, "") and not isinstance(available, bool):
        available = _AVAILABLE.get(str(available).strip().lower())
        if available is None:
            raise ValueError(f"available is {str(row.values['available'])[:40]!r}; true or false is needed")
    return Item(**asdict(item_of(row.values)), available=available is not False)


def _event(row: Row, names: Sequence[str], namespace: UUID, event_type: str) -> dict[str, Any]:
    """The row as `POST /v1/events` has it, unchecked. names: the columns that are fields of an event.

    Raises ValueError for text that does not turn into its type.
    """
    if row.problem is not None:
        raise ValueError(row.problem)
    values = row.values
    event = {name: _typed(name, value) for name in names if (value := values[name]) is not None and value != ""}
    if "occurred_at" not in event and not _absent(values, "timestamp"):
        event["occurred_at"] = datetime.fromtimestamp(timestamp_of(values["timestamp"]), UTC)
    if "event_id" not in event:
        event["event_id"] = str(uuid5(namespace, str(row.line)))
    event.setdefault("event_type", event_type)
    return event


def _moment(value: Any) -> datetime | None:
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).upper())
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _absent(values: Mapping[str, Any], name: str) -> bool:
    return values.get(name) in (None, "")


def _typed(name: str, value: Any) -> Any:
    """CSV knows text only; ids may be whole numbers in Parquet."""
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


@contextmanager
def _told_how_to_go_on(report: ImportReport) -> Iterator[None]:
    try:
        yield
    except StoreUnavailable as error:
        done = f"{report.imported:,} rows are in the store; run the same command again to go on"
        raise StoreUnavailable(f"{error.detail} ({done})", retry_after=error.retry_after) from error
