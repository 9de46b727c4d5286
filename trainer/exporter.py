"""`adaptide export events OUT.parquet` and `adaptide export recommendations OUT.parquet`."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from service.audit import repository as audit
from service.cli import Json, opened, print_json
from service.errors import InvalidRequest
from service.kit.clock import utc_now
from service.kit.db import Database
from service.settings import load_settings
from service.telemetry import configure_logging
from trainer.parquet_export import OnPage, export_events, export_recommendations

app = typer.Typer(no_args_is_help=True, help="Bring events and recommendations out, as Parquet files (docs/data.md).")

Out = Annotated[Path, typer.Argument(metavar="OUT.parquet", help="A new file, readable by you alone.")]
Since = Annotated[str | None, typer.Option(help="From this moment on, such as 2026-03-01 or 2026-03-01T12:00:00Z.")]
Until = Annotated[str | None, typer.Option(help="Before this moment.")]


@app.command()
def events(out: Out, since: Since = None, until: Until = None, as_json: Json = False) -> None:
    """Every event, in the order of arrival; --since and --until go by when it occurred."""
    _export("events", export_events, out, since, until, as_json)


@app.command()
def recommendations(out: Out, since: Since = None, until: Until = None, as_json: Json = False) -> None:
    """Every recommendation with its items, history and model; --since and --until go by when it was made."""
    _export("recommendations", export_recommendations, out, since, until, as_json)


def moment(given: str | None) -> datetime | None:
    """A day (its midnight) or a time; UTC unless it says otherwise. Raises InvalidRequest for anything else."""
    if given is None:
        return None
    try:
        found = datetime.fromisoformat(given)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"{given!r} is no time; write one such as 2026-03-01 or 2026-03-01T12:00:00Z") from error


def _export(
    what: str, write: Callable[..., int], out: Path, since: str | None, until: str | None, as_json: bool
) -> None:
    first, last = moment(since), moment(until)
    if first is not None and last is not None and first >= last:
        raise InvalidRequest("--until lies before --since; nothing would be written")
    settings = load_settings()
    configure_logging("WARNING")
    console = Console(stderr=True)
    with opened(settings) as database:
        _note(database, what, first, last)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task(f"exporting {what}")
            on_page: OnPage = lambda rows: progress.update(task, description=f"exporting {what}: {rows:,}")  # noqa: E731
            written = write(database, out, since=first, until=last, on_page=on_page)
    if as_json:
        print_json({"file": str(out), "rows": written})
    else:
        typer.echo(f"{written:,} {what} written to {out}")


def _note(database: Database, what: str, since: datetime | None, until: datetime | None) -> None:
    """The audit log says that somebody read them all."""
    with database.write() as connection:
        details = {"since": since and since.isoformat(), "until": until and until.isoformat()}
        audit.append(connection, now=utc_now(), actor="cli", action=f"{what}.export", details=details)
