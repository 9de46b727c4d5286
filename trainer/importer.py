"""`adaptide import items FILE` and `adaptide import events FILE`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from service.adapters.bus import Change
from service.cli import Json, opened, print_json
from service.kit.clock import utc_now
from service.kit.db import Database
from service.settings import Settings, load_settings
from service.shared import announcements, forgetting
from service.telemetry import configure_logging
from trainer.file_import import EVENT_TYPE, KEPT, ImportReport, OnBatch, import_events, import_items
from trainer.tabular import Format, Table

PRINTED = 20  # refusals on the terminal

app = typer.Typer(no_args_is_help=True, help="Bring items and events in from files; safe to repeat.")

File = Annotated[Path, typer.Argument(metavar="FILE", help="A CSV file (may be gzipped) or a Parquet file.")]
FileFormat = Annotated[Format | None, typer.Option("--format", help="Taken from the file's name unless given.")]


@app.command()
def items(file: File, format: FileFormat = None, as_json: Json = False) -> None:
    """Put items: columns item_id, title and, if there, categories, brand, description, available."""
    with _opened(file, format) as (database, settings, table), announcements(settings) as announce:
        with _progress("items", table) as on_batch:
            report = import_items(database, utc_now, table, on_batch)
        announce(Change.CATALOGUE)
    _finish(table, report, as_json)


@app.command()
def events(
    file: File,
    format: FileFormat = None,
    event_type: Annotated[str, typer.Option(help="Of events whose row names none.")] = EVENT_TYPE,
    as_json: Json = False,
) -> None:
    """Store events: columns user_id, item_id, timestamp (unix seconds) or occurred_at; any other field of an event."""
    with _opened(file, format) as (database, settings, table):
        with forgetting(settings) as on_stored, _progress("events", table) as on_batch:
            report = import_events(
                database,
                utc_now,
                table,
                clock_tolerance=settings.clock_tolerance,
                event_type=event_type,
                event_partition=settings.event_partition,
                on_batch=on_batch,
                on_stored=on_stored,
            )
    _finish(table, report, as_json)


@contextmanager
def _opened(file: Path, format: Format | None) -> Iterator[tuple[Database, Settings, Table]]:
    table = Table(file, format or (Format.PARQUET if file.suffix == ".parquet" else Format.CSV))
    settings = load_settings()
    configure_logging("WARNING")  # to standard error: standard output is the result's
    with opened(settings) as database:
        yield database, settings, table


@contextmanager
def _progress(what: str, table: Table) -> Iterator[OnBatch]:
    console = Console(stderr=True)
    columns = (TextColumn("importing {task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=table.size)
        yield lambda: progress.update(task, completed=table.done)


def _finish(table: Table, report: ImportReport, as_json: bool) -> None:
    """Print the report; exit status 1 when nothing of the file is in the store."""
    if as_json:
        values = asdict(report)
        print_json({"file": str(table.path), **values.pop("outcomes"), **values})
    else:
        _print(table, report)
    if not report.imported:
        raise typer.Exit(1)


def _print(table: Table, report: ImportReport) -> None:
    counts = report.outcomes | {"refused": report.refused}
    typer.echo(", ".join(f"{count:,} {outcome}" for outcome, count in counts.items()))
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
        typer.echo(f"  and {report.refused - PRINTED:,} more; --json lists up to {KEPT:,}", err=True)
    if report.refused and "accepted" in report.outcomes:
        typer.echo("Put corrected events into a file of their own: a changed file counts as a new one.", err=True)
