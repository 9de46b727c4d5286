"""`adaptide adapters list, show, verify, promote, rollback`: the same service functions as the API, as actor cli."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from service.adapters import integrity, service
from service.adapters.artifacts import ArtifactStore
from service.adapters.bus import Change
from service.adapters.moves import Activation, MoveRequest
from service.adapters.place import open_artifacts
from service.adapters.repository import Adapter
from service.adapters.schemas import ActivePointer, AdapterDetailView, AdapterView
from service.cli import Json, opened, print_json
from service.kit.clock import utc_now
from service.kit.db import Database
from service.settings import Settings, load_settings
from service.shared import announcements
from service.telemetry import configure_logging

ACTOR = "cli"

app = typer.Typer(no_args_is_help=True, help="The registry of adapters and the one that serves.")

Version = Annotated[str, typer.Argument(help="As shown by `adaptide adapters list`.")]
Reason = Annotated[str | None, typer.Option(help="Kept in the audit log.")]
Revision = Annotated[
    int | None, typer.Option("--if-revision", min=0, help="Fail when the pointer is no longer at this revision.")
]


@app.command("list")
def list_adapters(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Newest so many.")] = 100, as_json: Json = False
) -> None:
    """Adapters, newest first, and which one serves."""
    with _opened() as (database, _):
        found = service.read_registry(database, limit=limit)
    if as_json:
        active = ActivePointer.model_validate(found.pointer).model_dump()
        print_json({"active": active, "adapters": [_shown(adapter) for adapter in found.adapters]})
        return
    table = Table("", "version", "state", "window", "method", "base", "trained through", "created", box=None)
    for a in found.adapters:
        mark = "*" if a.adapter_version == found.pointer.adapter_version else ""
        through = f"{a.trained_through:%Y-%m-%d %H:%M}" if a.trained_through else "-"
        window = str(a.window_id) if a.window_id is not None else "-"
        created = f"{a.created_at:%Y-%m-%d %H:%M}"
        table.add_row(mark, a.adapter_version, a.state.value, window, a.method, a.base_id, through, created)
    Console().print(table)
    typer.echo(f"revision {found.pointer.revision}, base {found.pointer.base_id or 'none'}")


@app.command()
def show(version: Version, as_json: Json = False) -> None:
    """One adapter: what it was made of, how it scored, when it served."""
    with _opened() as (database, _):
        found = service.read_adapter(database, version)
    view = AdapterDetailView.of(found.adapter, found.active, found.revision, found.history).model_dump()
    if as_json:
        print_json(view)
        return
    table = Table("", "", box=None, show_header=False)
    for name, value in view.items():
        if name != "history":
            table.add_row(name.replace("_", " "), "-" if value is None else str(value))
    Console().print(table)
    for move in found.history:
        line = f"{move.created_at:%Y-%m-%d %H:%M:%S} revision {move.revision}: {move.action.value}"
        typer.echo(f"{line} {move.from_version or 'base'} -> {move.to_version or 'base'} by {move.actor}")


@app.command()
def verify(
    version: Annotated[str | None, typer.Argument(help="One version; none: the active one.")] = None,
    as_json: Json = False,
) -> None:
    """Read every byte of an adapter and its base and compare with what was registered; readmit what was repaired."""
    with _opened() as (database, artifacts):
        done = integrity.verify_with_base(database, utc_now, artifacts, version, actor=ACTOR)
    if as_json:
        print_json({"base_id": done.base_id, "adapter_version": done.adapter_version, "verified": True})
    else:
        typer.echo(f"verified: base {done.base_id}, adapter {done.adapter_version or 'none'}")


@app.command()
def promote(version: Version, reason: Reason = None, if_revision: Revision = None, as_json: Json = False) -> None:
    """Verify an adapter and let it serve, unless the gate refused it."""
    with _opened() as (database, artifacts), announcements(load_settings()) as announce:
        done = service.promote(database, utc_now, artifacts, version, MoveRequest(ACTOR, reason, if_revision))
        announce(Change.POINTER)
    _say(done, as_json)


@app.command()
def rollback(
    to_version: Annotated[
        str | None, typer.Argument(help='A version, or "base"; none: what was active before.')
    ] = None,
    reason: Reason = None,
    if_revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Go back; repeatedly, ever further. It stays until the next window that passes the gate."""
    with _opened() as (database, artifacts), announcements(load_settings()) as announce:
        done = service.rollback(database, utc_now, artifacts, MoveRequest(ACTOR, reason, if_revision), to_version)
        announce(Change.POINTER)
    _say(done, as_json)


@contextmanager
def opened_with_artifacts() -> Iterator[tuple[Settings, Database, ArtifactStore]]:
    """The settings, the store that they name and the place of artifacts; log lines go to standard error."""
    settings = load_settings()
    configure_logging("WARNING")  # to standard error: standard output is the result's
    with opened(settings) as database:
        yield settings, database, open_artifacts(settings)


@contextmanager
def _opened() -> Iterator[tuple[Database, ArtifactStore]]:
    with opened_with_artifacts() as (_, database, artifacts):
        yield database, artifacts


def _shown(adapter: Adapter) -> dict[str, Any]:
    return AdapterView.model_validate(adapter).model_dump()


def _say(done: Activation, as_json: bool) -> None:
    if as_json:
        print_json(asdict(done))
    else:
        moved = f"{done.from_version or 'base'} -> {done.to_version or 'base'}"
        typer.echo(f"{moved}, revision {done.revision}, audit {done.audit_id}")
