"""Files of items and events into the store, in batches; to go on after a failure, run it again.

Nothing but the store knows how far an import came: an event without an id of its own is named after what it says and
its line in the file, so the rows that are stored are found by their names, and are neither checked nor written again.
"""

import gc
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import islice

from service.catalog.schemas import Item
from service.catalog.service import put_items, rehearse_items
from service.errors import DatasetCutOff, StoreUnavailable
from service.events import partitions
from service.events.schemas import Event, IngestReport
from service.events.service import OnStored, ingest, known_ids
from service.kit.clock import Clock
from service.kit.db import Database
from trainer.datasets import item_of
from trainer.event_rows import EventBatch, EventReader
from trainer.formats import Row, Table
from trainer.import_report import ImportReport, Refusal
from trainer.moments import Moments

EVENTS, ITEMS = 2_000, 500
"""Rows in a transaction of SQLite, which has one writer at a time: about a tenth of a second on one core."""
COPIED_EVENTS, COPIED_ITEMS = 10_000, 5_000
"""Rows in a transaction of PostgreSQL: many for COPY, few enough that closing a window waits less than its second."""
BATCH_BYTES = 32 * 2**20  # of a text file; ten thousand rows of events are about one
REMEMBERED = 500_000  # ids of items in which a repeated one is found
EVENT_TYPE = "interaction"
EVENT_PARTITION = timedelta(days=30)
_ITEM_COLUMNS = frozenset(Item.model_fields)
_EVENT_COLUMNS = frozenset({*Event.model_fields, "timestamp"})
_AVAILABLE = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

OnBatch = Callable[[], None]
OnRefusal = Callable[[Refusal], None]


@dataclass(frozen=True, slots=True)
class _Stored:
    report: IngestReport
    lines: list[int]
    skipped: int


def import_items(
    database: Database,
    clock: Clock,
    table: Table,
    on_batch: OnBatch = lambda: None,
    *,
    limit: int | None = None,
    dry_run: bool = False,
    on_refusal: OnRefusal = lambda refusal: None,
) -> ImportReport:
    """Put the items of a table with item_id, title and, if there, categories, brand, description and available.

    A wrong row or a repeated id is refused, the others go in, some in each transaction. limit: rows to read. dry_run:
    the same report, and nothing is stored. Raises DatasetError where the file cannot be read on, StoreUnavailable; what
    was committed by then stays, and importing it again changes nothing.
    """
    table.require("item_id", "title")
    report = ImportReport({"created": 0, "updated": 0, "unchanged": 0}, on_refusal=on_refusal)
    report.ignored_columns = _ignored(table, _ITEM_COLUMNS)
    first: OrderedDict[str, int] = OrderedDict()  # a dict looks through what was taken from its front, each time
    for batch in _batches(table, _together(database, ITEMS, COPIED_ITEMS), limit, report):
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
        while len(first) > REMEMBERED:
            first.popitem(last=False)
        with _told_how_to_go_on(report):
            put = rehearse_items(database, items) if dry_run else put_items(database, clock, items)
        for outcome in report.outcomes:
            report.outcomes[outcome] += getattr(put, outcome)
        on_batch()
        report.give_up_on(table.path)
    return report


def import_events(
    database: Database,
    clock: Clock,
    table: Table,
    *,
    clock_tolerance: timedelta,
    event_type: str | None = None,
    event_partition: timedelta = EVENT_PARTITION,
    moments: Moments | None = None,
    distinct: bool = False,
    limit: int | None = None,
    dry_run: bool = False,
    on_batch: OnBatch = lambda: None,
    on_stored: OnStored = lambda events: None,
    on_refusal: OnRefusal = lambda refusal: None,
) -> ImportReport:
    """Store the events of a table with user_id, item_id, and timestamp (a number) or occurred_at (RFC 3339).

    Any other field of `POST /v1/events` may be a column. Without an event_id an event is named after its content and
    its line below the header (distinct: its content alone), so that importing the same file again, or the whole of one
    that was cut off, counts nothing twice. A wrong row is refused, the others go in. event_type: of rows that name
    none. event_partition: see ADAPTIDE_EVENT_PARTITION. limit: rows to read. dry_run: the same report, nothing stored.
    Raises DatasetError where the file cannot be read on, StoreUnavailable; what was committed by then stays.
    """
    table.require("user_id", "item_id", "occurred_at" if "occurred_at" in table.columns else "timestamp")
    report = ImportReport({"accepted": 0, "duplicates": 0}, on_refusal=on_refusal)
    report.ignored_columns = _ignored(table, _EVENT_COLUMNS)
    together = _together(database, EVENTS, COPIED_EVENTS)
    reading = EventReader(table, event_type or table.event_type or EVENT_TYPE, moments or Moments(), distinct, report)
    resuming = True  # until a batch in which nothing is known

    def store(batch: EventBatch) -> _Stored:
        nonlocal resuming
        events, lines, known = batch.events, batch.lines, set()
        if resuming and batch.named and events:
            known = known_ids(database, {event["event_id"] for event in events})
            resuming = bool(known)
        if known:  # by a name that is made of all an event says: they need no second look
            left = [at for at, event in enumerate(events) if event["event_id"] not in known]
            events, lines = [events[at] for at in left], [lines[at] for at in left]
        if not dry_run:
            with suppress(StoreUnavailable):  # somebody is in the way: the net takes the events meanwhile
                partitions.ensure(database, event_partition)
        stored = ingest(
            database,
            events,
            clock=clock,
            clock_tolerance=clock_tolerance,
            validate_only=dry_run,
            together=together,
            on_stored=on_stored,
        )
        return _Stored(stored, lines, len(batch.events) - len(events))

    def settle(done: Future[_Stored]) -> None:
        with _told_how_to_go_on(report):
            stored = done.result()
        for rejection in stored.report.rejected:
            report.refuse(stored.lines[rejection.index], rejection.code, rejection.detail)
        report.outcomes["accepted"] += stored.report.accepted
        report.outcomes["duplicates"] += stored.report.duplicates + stored.skipped
        report.skipped += stored.skipped
        report.unknown_items += stored.report.unknown_items
        on_batch()

    # The store takes one batch while the next one is read; never more, so that memory stays bounded.
    with _rare_collections(), ThreadPoolExecutor(1, "import-events") as writer:
        waiting: Future[_Stored] | None = None
        for rows in _batches(table, together, limit, report):
            batch, wrong = reading.batch(rows)
            if waiting is not None:
                settle(waiting)
            for line, why in wrong:
                report.refuse(line, "invalid_event", why)
            report.give_up_on(table.path)
            waiting = writer.submit(store, batch)
        if waiting is not None:
            settle(waiting)
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


def _together(database: Database, inserted: int, copied: int) -> int:
    return copied if database.dialect == "postgresql" else inserted


def _batches(table: Table, size: int, limit: int | None, report: ImportReport) -> Iterator[list[Row]]:
    """Up to `size` rows; fewer when they are so long that a small gzip file could fill the memory with them.

    A file that is cut off ends there, and the report says so.
    """
    batch: list[Row] = []
    start = 0
    try:
        for row in islice(table.rows(), limit):
            batch.append(row)
            if len(batch) == size or table.unpacked - start >= BATCH_BYTES:
                yield batch
                batch, start = [], table.unpacked
    except DatasetCutOff as error:
        report.cut_off = error.detail
    if batch:
        yield batch


def _ignored(table: Table, known: frozenset[str]) -> list[str]:
    return [name for name in table.columns if name not in known] + table.unused


def _item(row: Row) -> Item:
    if row.problem is not None:
        raise ValueError(row.problem)
    available = row.values.get("available")
    if available not in (None, "") and not isinstance(available, bool):
        available = _AVAILABLE.get(str(available).strip().lower())
        if available is None:
            raise ValueError(f"available is {str(row.values['available'])[:40]!r}; true or false is needed")
    return Item(**asdict(item_of(row.values)), available=available is not False)


@contextmanager
def _told_how_to_go_on(report: ImportReport) -> Iterator[None]:
    try:
        yield
    except StoreUnavailable as error:
        done = f"{report.imported:,} rows are in the store; run the same command again to go on"
        raise StoreUnavailable(f"{error.detail} ({done})", retry_after=error.retry_after) from error
