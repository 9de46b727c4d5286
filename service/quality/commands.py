"""`adaptide quality`: the same figures as GET /v1/admin/quality."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from service.cli import Json, opened, parse_duration, print_json
from service.kit.clock import utc_now
from service.quality import monitor
from service.quality.schemas import ModelQuality, QualityView
from service.settings import load_settings
from service.telemetry import configure_logging


def quality(
    last: Annotated[
        str | None, typer.Option(help="Only what was recommended in the last 90m, 12h or 7d; none: all that is kept.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What live recommendations have come to, by the version that made them (docs/quality.md)."""
    since = None if last is None else max(utc_now() - parse_duration(last), datetime(1970, 1, 1, tzinfo=UTC))
    settings = load_settings()
    configure_logging("WARNING")
    with opened(settings) as database:
        view = QualityView.of(*monitor.read_with_look(database, settings, since=since), settings.rollback_automatic)
    if as_json:
        print_json(view.model_dump())
        return
    table = Table("model", "shown", "waiting", "hit rate", "95 %", "gain", "coverage", "novelty", "repeated", box=None)
    for one in view.models:
        table.add_row(*_row(one))
    Console().print(table)
    if view.horizon_seconds is None:
        typer.echo("nothing is counted: set ADAPTIDE_QUALITY_HORIZON")
        return
    through = f"{view.counted_through:%Y-%m-%d %H:%M} UTC" if view.counted_through else "nothing yet"
    typer.echo(f"counted through {through}; an event counts for {view.horizon_seconds:g} s after a recommendation")
    typer.echo(
        f"serving {view.watch.serving or 'nothing'}, before it {view.watch.previous or 'nothing'}: {view.watch.why}"
    )


def _row(one: ModelQuality) -> list[str]:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    model = one.model if one.arm == "main" else f"{one.model} ({one.arm})"
    between = "-" if one.hit_rate_low is None else f"{one.hit_rate_low:.4f} to {one.hit_rate_high:.4f}"
    rates = (share(one.hit_rate), between, share(one.gain), share(one.coverage))
    novelty = "-" if one.novelty is None else f"{one.novelty:.1f} bits"
    return [model, f"{one.shown:,}", f"{one.immature:,}", *rates, novelty, share(one.repetition)]
