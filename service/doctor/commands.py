"""`adaptide doctor`: what is installed, reachable, migrated, verified; what to do about what is not."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

import typer
from rich.console import Console

from service.adapters.place import open_artifacts
from service.cli import print_json
from service.doctor import installation, places, work
from service.doctor.findings import Check, Finding, Level, look, problem
from service.doctor.settings import check_credit, check_settings
from service.errors import ConfigurationError
from service.kit.clock import Clock, utc_now
from service.kit.db import Database
from service.settings import Settings, load_settings
from service.store import open_store
from service.telemetry import configure_logging

Checks = Callable[[Settings], Mapping[str, Check]]
MARKS = {Level.OK: "[green]ok[/]", Level.WARNING: "[yellow]warning[/]", Level.PROBLEM: "[bold red]problem[/]"}


def run_doctor(more: Checks, *, quick: bool, as_json: bool) -> None:
    """Print what is found; ends with status 1 when anything is a problem. more: checks of the other half."""
    configure_logging("CRITICAL")  # what goes wrong is said here
    found = list(everything(more, quick=quick))
    if as_json:
        print_json({"healthy": not any(_is_problem(one) for one in found), "findings": [asdict(one) for one in found]})
    else:
        console = Console(soft_wrap=True, highlight=False)
        for one in found:
            console.print(MARKS[one.level], end=" ")
            console.print(f"{one.check}: {one.said}", markup=False)
            if one.advice:
                console.print(f"    {one.advice}", markup=False)
    raise typer.Exit(1 if any(_is_problem(one) for one in found) else 0)


def everything(more: Checks, *, quick: bool = False, clock: Clock = utc_now) -> Iterator[Finding]:
    try:
        settings = load_settings()
    except ConfigurationError as error:
        yield problem("settings", error.detail, "docs/settings.md lists them all")
        return
    yield from look("settings", lambda: check_settings(settings))
    yield from look("quality", lambda: check_credit(settings))
    yield from look("packages", lambda: installation.check_packages(settings))
    for name, check in more(settings).items():
        yield from look(name, check)
    yield from look("folders", lambda: places.check_folders(settings))
    yield from look("redis", lambda: places.check_redis(settings))
    absent = list(look("database", lambda: places.check_store_file(settings.store_url)))
    yield from absent
    if absent:
        return
    try:
        database = open_store(settings)
    except ConfigurationError as error:
        yield problem("database", error.detail, "set ADAPTIDE_DATABASE_URL, or ADAPTIDE_HOME")
        return
    try:
        yield from of_store(database, settings, clock, quick=quick)
    finally:
        database.close()


def of_store(database: Database, settings: Settings, clock: Clock, *, quick: bool = False) -> Iterator[Finding]:
    """What the store and the artifacts show; no more than the first line when it does not answer."""
    reached = list(look("database", lambda: places.check_database(database)))
    yield from reached
    if any(_is_problem(one) for one in reached):
        return
    yield from look("clock", lambda: places.check_clock(database, clock, settings))
    yield from look("keys", lambda: work.check_keys(database, clock))
    yield from look("artifacts", lambda: places.check_artifacts(database, open_artifacts(settings), quick=quick))
    yield from look("windows", lambda: work.check_windows(database, clock, settings))
    yield from look("replicas", lambda: work.check_replicas(database, clock, settings))


def _is_problem(finding: Finding) -> bool:
    return finding.level is Level.PROBLEM
