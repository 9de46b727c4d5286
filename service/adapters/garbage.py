"""Garbage collection: what nobody needs is marked in the store first, in one transaction, and deleted afterwards.

A mark is for good, so a promotion that comes after it is refused, and one that came before it is seen by it. An
interruption leaves marked artifacts whose files the next collection deletes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog
from sqlalchemy.engine import Connection

from service.adapters import repository, states
from service.adapters.artifacts import ADAPTERS, BASES, ArtifactStore
from service.adapters.collection import Choice, Registry, Use, choose
from service.adapters.states import AdapterState, Move
from service.audit import repository as audit
from service.errors import ArtifactError, ArtifactMissing
from service.kit import leases
from service.kit.clock import Clock
from service.kit.crash_points import CrashPoint, crash_point
from service.kit.db import Database
from service.kit.leases import Lease
from service.replicas import repository as replicas
from service.trials import repository as trials
from service.windows.uses import of_windows

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Collected:
    """What a collection did, or would do. bytes: freed in the place of artifacts, where they were still there."""

    choice: Choice
    adapters: list[str] = field(default_factory=list)
    bases: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    """Published or half published and never registered."""
    staging: int = 0
    """Folders that killed publishers left."""
    bytes: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """Name -> why it could not be deleted now; the next collection tries again."""


def collect(
    database: Database,
    clock: Clock,
    artifacts: ArtifactStore,
    *,
    keep: int,
    grace: timedelta,
    attempts: int,
    actor: str,
    leftovers: bool = True,
    dry_run: bool = False,
    lease: Lease | None = None,
) -> Collected:
    """Delete what nobody needs (see collection.choose) and what was never registered and is older than `grace`.

    attempts: settings' window_attempts. leftovers: whether to look at what is not registered; only for who holds the
    updater's lease, so that no window is being published meanwhile. lease: that one, which must be in force when
    anything is marked and whenever a leftover goes. Raises LeaseLost, and ArtifactUnreachable when the place of
    artifacts cannot be listed; then nothing is marked.
    """
    present = {room: artifacts.names(room) for room in (ADAPTERS, BASES)}
    since = clock() - grace
    if dry_run:
        with database.read() as connection:
            done = Collected(choose(_registry(connection, attempts), keep=keep, since=since))
    else:
        with database.write() as connection:
            if lease is not None:
                leases.check(connection, lease)
            repository.read_pointer(connection, lock=True)  # no move of it until the marks are written
            done = Collected(choose(_registry(connection, attempts), keep=keep, since=since))
            _mark(connection, done.choice, clock(), actor)
        crash_point(CrashPoint.COLLECTING)
    with database.read() as connection:  # as the marks are now: those of a collection that was cut off included
        marked, known = _marked(connection, done.choice)
    for room, deleted in ((ADAPTERS, done.adapters), (BASES, done.bases)):
        for name in present[room]:
            if name in marked:
                _remove(artifacts, room, name, done, deleted, dry_run)
            elif name not in known and leftovers:
                _require(database, lease)
                _remove(artifacts, room, name, done, done.leftovers, dry_run, unless_since=since)
    if leftovers and not dry_run:
        done.staging = artifacts.remove_staging(since)
    log.info(
        "artifacts_collected",
        adapters=len(done.adapters),
        bases=len(done.bases),
        leftovers=len(done.leftovers),
        bytes=done.bytes,
        failed=len(done.failed),
        dry_run=dry_run,
    )
    return done


def _require(database: Database, lease: Lease | None) -> None:
    if lease is not None:
        with database.write() as connection:
            leases.check(connection, lease)


def _registry(connection: Connection, attempts: int) -> Registry:
    pointer = repository.read_pointer(connection)
    moves = repository.activations_of_base(connection, pointer.base_id) if pointer.base_id else []
    uses = of_windows(connection, attempts)
    for replica in replicas.list_all(connection):
        by = f"replica {replica.host} {replica.process}"
        uses += [
            Use(by, replica.base_id, replica.adapter_version),
            Use(by, replica.wanted_base_id, replica.wanted_version),
            Use(by, None, replica.trial_version),
        ]
    if (latest := trials.latest(connection)) is not None and latest.trial is not None:
        uses.append(Use("trial", latest.base_id, latest.adapter_version))
    return Registry(
        pointer,
        repository.list_bases(connection),
        repository.list_adapters(connection, limit=None),
        states.served_stack([Move(row.action, row.to_version) for row in moves]),
        uses,
    )


def _mark(connection: Connection, choice: Choice, now: datetime, actor: str) -> None:
    for version in choice.adapters:
        repository.set_state(connection, version, AdapterState.COLLECTED)
    for base_id in choice.bases:
        repository.set_collected(connection, base_id, now)
    _note(connection, "adapter.collect", choice.adapters, now, actor)
    _note(connection, "base.collect", choice.bases, now, actor)


def _note(connection: Connection, action: str, names: Sequence[str], now: datetime, actor: str) -> None:
    for name in names:
        audit.append(connection, now=now, actor=actor, action=action, subject=name)


def _marked(connection: Connection, choice: Choice) -> tuple[set[str], set[str]]:
    """(names whose files may go, every registered name)."""
    adapters = repository.list_adapters(connection, limit=None)
    bases = repository.list_bases(connection)
    marked = {a.adapter_version for a in adapters if a.state is AdapterState.COLLECTED}
    marked |= {base.base_id for base in bases if base.collected_at is not None}
    marked |= {*choice.adapters, *choice.bases}  # of a dry run
    return marked, {a.adapter_version for a in adapters} | {base.base_id for base in bases}


def _remove(
    artifacts: ArtifactStore,
    room: str,
    name: str,
    done: Collected,
    deleted: list[str],
    dry_run: bool,
    unless_since: datetime | None = None,
) -> None:
    try:
        size, written = artifacts.measure(room, name)
        if unless_since is not None and written > unless_since:
            return
        if not dry_run:
            artifacts.remove(room, name)
    except ArtifactMissing as error:
        if type(error) is not ArtifactMissing:
            done.failed[name] = error.detail
        return
    except ArtifactError as error:
        done.failed[name] = error.detail
        return
    deleted.append(name)
    done.bytes += size
