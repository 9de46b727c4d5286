"""`adaptide adapters canary, shadow, trial`: the same service functions as the API, as actor cli."""

from datetime import timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from service.adapters.bus import Change
from service.adapters.commands import ACTOR, Reason, app, opened_with_artifacts
from service.adapters.moves import MoveRequest
from service.cli import Json, print_json
from service.kit.clock import utc_now
from service.shared import announcements
from service.trials import service
from service.trials.judging import TrialReport, report
from service.trials.repository import TrialRow
from service.trials.schemas import TrialChangeView, TrialMoveView, TrialReportView, TrialView
from service.trials.service import Wanted
from service.trials.states import Kind

Version = Annotated[str, typer.Argument(help="As shown by `adaptide adapters list`.")]
Share = Annotated[float, typer.Option(min=0.0, max=1.0, help="Of users, such as 0.1.")]
Hours = Annotated[float | None, typer.Option(min=0.01, help="It ends by itself after so long; none: when it is ended.")]
Revision = Annotated[
    int | None, typer.Option("--if-revision", min=0, help="Fail when the trial is no longer at this revision.")
]


@app.command()
def canary(
    version: Version,
    share: Share,
    hours: Hours = None,
    reason: Reason = None,
    if_revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Let a candidate answer a share of the users; again with another share: change it."""
    _run(Kind.CANARY, version, share, hours, MoveRequest(ACTOR, reason, if_revision), as_json)


@app.command()
def shadow(
    version: Version,
    share: Share,
    hours: Hours = None,
    reason: Reason = None,
    if_revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Let a candidate rank what a share of the users were answered, without showing it."""
    _run(Kind.SHADOW, version, share, hours, MoveRequest(ACTOR, reason, if_revision), as_json)


@app.command()
def trial(
    end: Annotated[bool, typer.Option("--end", help="End it: the active adapter answers everybody.")] = False,
    reason: Reason = None,
    if_revision: Revision = None,
    horizon_hours: Annotated[float, typer.Option(min=0.01, max=720, help="What users take counts for so long.")] = 24,
    as_json: Json = False,
) -> None:
    """The candidate that is on trial, and how it does, or how the latest one did."""
    if end:
        with opened_with_artifacts() as (settings, database, _), announcements(settings) as announce:
            done = service.end(database, utc_now, MoveRequest(ACTOR, reason, if_revision))
            announce(Change.TRIAL)
        _say(done, as_json)
        return
    with opened_with_artifacts() as (settings, database, _):
        found = service.read(database)
        horizon = timedelta(hours=horizon_hours)
        made = report(database, horizon, settings.ignored_event_types) if found.history else None
    if as_json:
        shown = None if found.trial is None else TrialView.model_validate(found.trial).model_dump()
        history = [TrialMoveView.model_validate(row).model_dump() for row in found.history]
        judged = None if made is None else TrialReportView.of(made).model_dump()
        print_json({"revision": found.revision, "trial": shown, "history": history, "report": judged})
        return
    typer.echo(_line(found.history[0]) if found.trial else f"no adapter is on trial, revision {found.revision}")
    if made is not None:
        _print(made)


def _run(kind: Kind, version: str, share: float, hours: float | None, request: MoveRequest, as_json: bool) -> None:
    if not share:
        raise typer.BadParameter("a share is above 0; to end a trial: adaptide adapters trial --end")
    ends_at = None if hours is None else utc_now() + timedelta(hours=hours)
    with opened_with_artifacts() as (settings, database, artifacts), announcements(settings) as announce:
        done = service.run(database, utc_now, artifacts, Wanted(version, kind, share, ends_at), request)
        announce(Change.TRIAL)
    _say(done, as_json)


def _say(done: TrialRow, as_json: bool) -> None:
    if as_json:
        print_json(TrialChangeView.of(done).model_dump())
    else:
        typer.echo(f"{_line(done)}, audit {done.audit_id}")


def _print(made: TrialReport) -> None:
    table = Table("", "requests", "users", "control hits", "candidate hits", "difference", "95 %", box=None)
    shadow = made.shadow
    for name, one in (("shadow", shadow.hits), ("shadow, organic", shadow.organic_hits), ("canary", made.canary)):
        requests = one.candidate.requests if one is not made.canary else one.control.requests + one.candidate.requests
        users = one.candidate.users if one is not made.canary else one.control.users + one.candidate.users
        ci95 = "-" if one.ci95 is None else f"{one.ci95[0]:+.4f} to {one.ci95[1]:+.4f}"
        rates = (_figure(one.control.hits), _figure(one.candidate.hits), _figure(one.difference))
        table.add_row(name, str(requests), str(users), *rates, ci95)
    Console().print(table)
    if shadow.requests:
        order = f"rank shift {_figure(shadow.rank_shift)}, Kendall's tau {_figure(shadow.rank_correlation)}"
        typer.echo(f"{shadow.requests} lists in the shadow: overlap {_figure(shadow.overlap)}, {order}")
        typer.echo("Users saw only control's lists, so hits in the shadow lean towards control.")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _line(row: TrialRow) -> str:
    if row.trial is None:
        return f"the trial of {row.adapter_version} has ended ({row.because}), revision {row.revision}"
    until = "until it is ended" if row.ends_at is None else f"until {row.ends_at:%Y-%m-%d %H:%M} UTC"
    return f"{row.kind} of {row.adapter_version} on {row.share:.2%} of users, {until}, revision {row.revision}"
