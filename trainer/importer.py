"""`adaptide import items FILE` and `adaptide import events FILE`."""

import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from service.adapters.bus import Change
from service.cli import Json, opened, print_json
from service.errors import InvalidRequest
from service.kit.clock import utc_now
from service.kit.files import unwritten
from service.settings import load_settings
from service.shared import announcements, forgetting
from service.telemetry import configure_logging
from trainer.file_import import EVENT_TYPE, OnBatch, OnRefusal, import_events, import_items
from trainer.formats import Format, Options, Table, open_tables
from trainer.formats.opening import EVENTS, ITEMS
from trainer.import_report import KEPT, ImportReport, Refusal
from trainer.moments import Moments, Unit

PRINTED = 20  # refusals on the terminal

app = typer.Typer(no_args_is_help=True, help="Bring items and events in from files; safe to repeat (docs/data.md).")

File = Annotated[Path, typer.Argument(metavar="FILE", help="A file (may be gzipped), or the folder of a data set.")]
FileFormat = Annotated[
    Format | None, typer.Option("--format", help="Taken from the file's name and content unless given.")
]
Map = Annotated[
    list[str] | None, typer.Option("--map", metavar="NAME=COLUMN", help="What NAME is called in the file; repeat it.")
]
Encoding = Annotated[str, typer.Option(help="Of text files, such as latin-1 or utf-16.")]
Delimiter = Annotated[str | None, typer.Option(help="Of csv; found in the header unless given. `tab` for a tab.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Read so many rows of each file at most.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Read and check all of it, but store nothing.")]
Refusals = Annotated[
    Path | None,
    typer.Option(
        help="Write every row that was refused to this new file, or that of an earlier run: line, code and reason as "
        "JSON lines."
    ),
]


@app.command()
def items(
    file: File,
    format: FileFormat = None,
    map: Map = None,
    encoding: Encoding = "utf-8",
    delimiter: Delimiter = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    refusals: Refusals = None,
    as_json: Json = False,
) -> None:
    """Put items: item_id, title and, if there, categories, brand, description, available."""
    tables = open_tables(file, format, ITEMS, _options(map, encoding, delimiter))
    settings = load_settings()
    configure_logging("WARNING")  # to standard error: standard output is the result's
    with opened(settings) as database, announcements(settings) as announce, _written(refusals) as note:

        def take(table: Table, on_batch: OnBatch) -> ImportReport:
            return import_items(
                database, utc_now, table, on_batch, limit=limit, dry_run=dry_run, on_refusal=note(table)
            )

        reports = _each("items", tables, take)
        if not dry_run:
            announce(Change.CATALOGUE)
    _finish(reports, as_json, dry_run)


@app.command()
def events(
    file: File,
    format: FileFormat = None,
    map: Map = None,
    event_type: Annotated[
        str | None, typer.Option(help=f"Of events whose row names none; {EVENT_TYPE} unless the format knows better.")
    ] = None,
    timestamp_unit: Annotated[Unit, typer.Option(help="Of the column `timestamp`, in units since 1970.")] = Unit.AUTO,
    timezone: Annotated[
        str | None, typer.Option(help="Of times that name no zone, such as UTC or Europe/Berlin; refused unless given.")
    ] = None,
    distinct: Annotated[
        bool, typer.Option("--distinct", help="Rows that say the same are one event, wherever they lie.")
    ] = False,
    encoding: Encoding = "utf-8",
    delimiter: Delimiter = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    refusals: Refusals = None,
    as_json: Json = False,
) -> None:
    """Store events: user_id, item_id, timestamp (a number) or occurred_at (a date); any other field of an event."""
    moments = Moments(timestamp_unit, timezone)
    tables = open_tables(file, format, EVENTS, _options(map, encoding, delimiter))
    settings = load_settings()
    configure_logging("WARNING")
    with opened(settings) as database, forgetting(settings) as on_stored, _written(refusals) as note:

        def take(table: Table, on_batch: OnBatch) -> ImportReport:
            return import_events(
                database,
                utc_now,
                table,
                clock_tolerance=settings.clock_tolerance,
                event_type=event_type,
                event_partition=settings.event_partition,
                moments=moments,
                distinct=distinct,
                limit=limit,
                dry_run=dry_run,
                on_batch=on_batch,
                on_stored=on_stored,
                on_refusal=note(table),
            )

        reports = _each("events", tables, take)
    _finish(reports, as_json, dry_run)


def parse_mapping(given: list[str]) -> dict[str, str]:
    """NAME=COLUMN, repeated. Raises InvalidRequest for anything else, a name given twice or a column used twice."""
    mapping: dict[str, str] = {}
    for text in given:
        name, equals, column = text.partition("=")
        if not equals or not name or not column:
            raise InvalidRequest(f"--map {text!r} is not NAME=COLUMN, such as item_id=asin")
        if name in mapping or column in mapping.values():
            raise InvalidRequest(f"--map {text!r} names {name if name in mapping else column!r} a second time")
        mapping[name] = column
    return mapping


def _options(given: list[str] | None, encoding: str, delimiter: str | None) -> Options:
    try:
        "".encode(encoding)
    except LookupError as error:
        raise InvalidRequest(f"the encoding {encoding!r} is not known; try utf-8, latin-1, cp1252 or utf-16") from error
    if delimiter in ("tab", "\\t"):
        delimiter = "\t"
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise InvalidRequest("--delimiter is one character, or `tab`")
    return Options(parse_mapping(given or []), encoding, delimiter)


def _each(
    what: str, tables: list[Table], take: Callable[[Table, OnBatch], ImportReport]
) -> list[tuple[Table, ImportReport]]:
    """Import one file after the other, with a bar for each on a terminal."""
    console = Console(stderr=True)
    columns = (
        *(TextColumn("importing {task.description}"), BarColumn(), TaskProgressColumn()),
        *(TimeElapsedColumn(), TimeRemainingColumn()),
    )
    reports = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for table in tables:
            name = what if len(tables) == 1 else f"{what} of {table.path.name}"
            task = progress.add_task(name, total=table.size)
            reports.append((table, take(table, lambda t=table, k=task: progress.update(k, completed=t.done))))  # type: ignore[misc]
    return reports


@contextmanager
def _written(path: Path | None) -> Iterator[Callable[[Table], OnRefusal]]:
    """What writes a table's refusals to the file at `path`, its owner's alone: they quote it."""
    if path is None:
        yield lambda table: lambda refusal: None
        return
    with _writable(path):
        file = _emptied(path)

    def note(table: Table) -> OnRefusal:
        def write(refusal: Refusal) -> None:
            line = {"file": str(table.path), **asdict(refusal)}
            with _writable(path):
                file.write(orjson.dumps(line, default=str, option=orjson.OPT_APPEND_NEWLINE))

        return write

    try:
        yield note
    finally:
        with _writable(path):
            file.close()


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidRequest(unwritten(path, error)) from error


def _emptied(path: Path) -> IO[bytes]:
    """A new file, or the one that an earlier run of this command left, which reads the same refusals again.

    Raises InvalidRequest for a link and for a file that holds anything else, OSError.
    """
    if path.is_symlink():
        raise InvalidRequest(f"{path} is a link; name a new file")
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b", buffering=0)
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        first = file.read(2**20).partition(b"\n")[0]
        try:
            ours = not first or {"file", *(field.name for field in fields(Refusal))} <= set(orjson.loads(first))
        except (orjson.JSONDecodeError, TypeError):
            ours = False
        if not ours:
            file.close()
            raise InvalidRequest(f"{path} is there already and holds something else; name a new file")
        file.seek(0)
        file.truncate()
    return io.BufferedWriter(file)


def _finish(reports: list[tuple[Table, ImportReport]], as_json: bool, dry_run: bool) -> None:
    """Print the reports; exit status 1 when nothing of a file is in the store, or one was cut off."""
    if as_json:
        found = [_as_json(table, report, dry_run) for table, report in reports]
        print_json(found[0] if len(found) == 1 else {"files": found})
    else:
        for table, report in reports:
            if len(reports) > 1:
                typer.echo(f"{table.path}:")
            _print(table, report, dry_run)
    if not all(report.imported for _, report in reports) or any(report.cut_off for _, report in reports):
        raise typer.Exit(1)


def _as_json(table: Table, report: ImportReport, dry_run: bool) -> dict[str, Any]:
    values = {
        name: getattr(report, name)
        for name in ("refused", "ignored_columns", "skipped", "unknown_items", "out_of_order", "cut_off")
    }
    refusals = [asdict(refusal) for refusal in report.refusals]
    return {"file": str(table.path), "dry_run": dry_run, **report.outcomes, **values, "refusals": refusals}


def _print(table: Table, report: ImportReport, dry_run: bool) -> None:
    counts = report.outcomes | {"refused": report.refused}
    said = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items())
    typer.echo(f"nothing was stored; it would be: {said}" if dry_run else said)
    if report.unknown_items:
        typer.echo(f"{report.unknown_items:,} events name items that are not in the catalogue (yet)")
    if report.out_of_order:
        typer.echo(
            f"{report.out_of_order:,} events lie before the one above them; windows follow the order of arrival, "
            "so sort a file by time before its first import"
        )
    if report.ignored_columns:
        typer.echo(f"columns that were not used: {', '.join(report.ignored_columns)}")
    for refusal in report.refusals[:PRINTED]:
        typer.echo(f"  {table.unit} {refusal.line}: {refusal.detail} ({refusal.code})", err=True)
    if report.refused > PRINTED:
        typer.echo(
            f"  and {report.refused - PRINTED:,} more; --refusals FILE writes them all, --json lists up to {KEPT:,}",
            err=True,
        )
    if report.refused:
        typer.echo(
            "Correct those rows where they stand and import the file again: the others are duplicates.", err=True
        )
    if report.cut_off:
        typer.echo(f"The file ended too early: {report.cut_off}", err=True)
        typer.echo("What came before is stored. Import the whole file when you have it: it goes on there.", err=True)
