"""`adaptide artifacts check, sign, gc`: the place of artifacts, signatures, and what nobody needs any more."""

import os
import socket
from typing import Annotated

import typer

from service.adapters import garbage
from service.adapters.commands import ACTOR, opened_with_artifacts
from service.adapters.garbage import Collected
from service.adapters.place import require_writable
from service.adapters.signing import sign_registered
from service.cli import Json, print_json
from service.errors import ConfigurationError, Conflict, Unavailable
from service.kit.clock import utc_now
from service.kit.ids import uuid7
from service.kit.lease_keeper import held
from service.kit.leases import Lease
from service.windows.service import UPDATER_LEASE

app = typer.Typer(no_args_is_help=True, help="The place of bases and adapters.")


@app.command()
def check(as_json: Json = False) -> None:
    """Exit with 1 unless the place of artifacts can be read and written."""
    with opened_with_artifacts() as (settings, _, artifacts):
        artifacts.check(write=True)
        place = artifacts.remote.objects.url if artifacts.remote else str(settings.artifacts_dir)
    if as_json:
        print_json({"place": place, "writable": True})
    else:
        typer.echo(f"{place} can be read and written")


@app.command()
def sign(as_json: Json = False) -> None:
    """Sign every registered base and adapter with ADAPTIDE_SIGNING_KEY, once it is what was registered."""
    with opened_with_artifacts() as (_, database, artifacts):
        if not artifacts.keys.set:
            raise ConfigurationError("ADAPTIDE_SIGNING_KEY is not set; make a key with: openssl rand -hex 32")
        require_writable(artifacts)
        key_id = artifacts.keys.ids[0]
        done = sign_registered(database, utc_now, artifacts, key_id, actor=ACTOR)
    if as_json:
        print_json({"key": key_id, "signed": done.signed, "signed_before": done.before, "refused": done.refused})
    else:
        for name in done.signed:
            typer.echo(f"signed {name}")
        for name, why in done.refused.items():
            typer.echo(f"refused {name}: {why}", err=True)
        typer.echo(f"signed {len(done.signed)} with key {key_id}, {len(done.before)} were already")
    if done.refused:
        raise Conflict(f"{len(done.refused)} were not signed, for they are not what was registered")


@app.command()
def gc(
    keep: Annotated[int | None, typer.Option(min=1, help="Newest so many; ADAPTIDE_ARTIFACTS_KEEP.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Delete bases and adapters that nothing serves, may be rolled back to or is young, for good."""
    with opened_with_artifacts() as (settings, database, artifacts):
        owner = f"{socket.gethostname()}-{os.getpid()}-{uuid7()[-8:]}"

        def collect(leftovers: bool, lease: Lease | None = None) -> Collected:
            return garbage.collect(
                database,
                utc_now,
                artifacts,
                keep=keep or settings.artifacts_keep,
                grace=settings.artifacts_grace,
                attempts=settings.window_attempts,
                actor=ACTOR,
                leftovers=leftovers,
                dry_run=dry_run,
                lease=lease,
            )

        if dry_run:
            busy, done = False, collect(True)
        else:  # an updater may be about to register what it has published
            with held(database, UPDATER_LEASE, owner, settings.lease_duration) as lease:
                busy, done = lease is None, collect(lease is not None, lease)
    if as_json:
        print_json(_shown(done, dry_run, busy))
    else:
        _say(done, dry_run, busy)
    if done.failed:
        raise Unavailable(f"{len(done.failed)} could not be deleted now; the next collection tries again")


def _shown(done: Collected, dry_run: bool, busy: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "adapters": done.adapters,
        "bases": done.bases,
        "leftovers": done.leftovers,
        "staging": done.staging,
        "bytes": done.bytes,
        "failed": done.failed,
        "kept": {**done.choice.kept_bases, **done.choice.kept_adapters},
        "updater_at_work": busy,
    }


def _say(done: Collected, dry_run: bool, busy: bool) -> None:
    verb = "would delete" if dry_run else "deleted"
    for kind, names in (("adapter", done.adapters), ("base", done.bases), ("leftover", done.leftovers)):
        for name in names:
            typer.echo(f"{verb} {kind} {name}")
    for name, why in done.failed.items():
        typer.echo(f"could not delete {name}: {why}", err=True)
    for name, why in {**done.choice.kept_bases, **done.choice.kept_adapters}.items():
        typer.echo(f"kept {name}: {why}")
    typer.echo(f"{verb} {len(done.adapters) + len(done.bases) + len(done.leftovers)}, {done.bytes / 2**20:.1f} MiB")
    if busy:
        typer.echo("note: an updater is at work, so what was never registered was left for the next time", err=True)
