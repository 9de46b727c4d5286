"""The serving version beside the one before it, live; and back to that one when it fell below it.

It moves the pointer as an admin would: on the condition of the revision that was judged (If-Match), under a key that
makes one move of each revision, to a version that the registry may restore and whose files verify.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog
from sqlalchemy.engine import Connection

from service.adapters import repository as adapters
from service.adapters import service as registry
from service.adapters import states
from service.adapters.artifacts import ArtifactStore
from service.adapters.moves import BASE_TARGET, Activation, MoveRequest
from service.adapters.repository import ActivationRow, Pointer
from service.adapters.states import Action
from service.errors import ArtifactError, Conflict, NotFound, PreconditionFailed
from service.kit import leases
from service.kit.clock import Clock
from service.kit.db import Database
from service.kit.leases import Lease
from service.quality import repository
from service.quality.repository import Bucket
from service.quality.sequential import Decision, judge
from service.quality.service import Quality, quality_of, rules_of, sides_of
from service.settings import Settings
from service.telemetry import AUTOMATIC_ROLLBACKS

ACTOR = "quality-monitor"
DEEPEST = 10
"""So many versions before the serving one are looked at for one that served long enough to compare with."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Before:
    """A version that served before: what a rollback to it names, what its figures are kept under, since when."""

    target: str | None
    model: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is watched: the serving version, since when, and those before it, the latest first; or why nobody is."""

    pointer: Pointer
    since: datetime | None
    before: tuple[Before, ...]
    idle: str | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """One look: what was compared with what, and the decision; or why nothing was."""

    pointer: Pointer
    previous: Before | None
    decision: Decision | None
    idle: str | None = None


def look(database: Database, settings: Settings) -> Look:
    """Compare the serving version with the latest before it that has enough counted recommendations."""
    with database.read() as connection:
        watched = watch(connection)
        found: list[Bucket] = []
        if (first := _first(watched, settings)) is not None and settings.quality_horizon is not None:
            wanted = {_serving(watched), repository.POPULAR, *(one.model for one in watched.before)}
            found = repository.buckets(connection, settings.quality_horizon, since=first, models=wanted, sketches=False)
    return _look(watched, found, settings)


def read_with_look(
    database: Database, settings: Settings, *, since: datetime | None = None, until: datetime | None = None
) -> tuple[Quality, Look]:
    """What read_quality and `look` find, from one snapshot and one reading of the buckets."""
    with database.read() as connection:
        watched, found = watch(connection), list[Bucket]()
        if settings.quality_horizon is not None:
            first = _first(watched, settings)
            start = since if since is None or first is None else min(since, first)
            found = repository.buckets(connection, settings.quality_horizon, since=start, sketches_since=since)
        shown = [b for b in found if (since is None or b.start >= since) and (until is None or b.start < until)]
        quality = quality_of(connection, settings, shown, since=since, until=until)
    return quality, _look(watched, found, settings)


def _first(watched: Watch, settings: Settings) -> datetime | None:
    """The earliest bucket that a look needs; None for one that compares nothing."""
    if watched.idle is not None or watched.since is None:
        return None
    return min(one.since for one in watched.before) - settings.quality_bucket  # began to serve within a bucket


def _serving(watched: Watch) -> str:
    return watched.pointer.adapter_version or watched.pointer.base_id or ""


def _look(watched: Watch, found: Sequence[Bucket], settings: Settings) -> Look:
    """found: buckets in order of time, all that began since `_first` at least."""
    first = _first(watched, settings)
    if first is None or watched.since is None or settings.quality_horizon is None:
        return Look(watched.pointer, None, None, watched.idle or "nothing is counted")
    rules = rules_of(settings)
    for previous in watched.before:
        own = [bucket for bucket in found if bucket.start >= first and bucket.end > previous.since]
        sides = sides_of(own, _serving(watched), previous.model, watched.since)
        if sides.incumbent.shown >= rules.minimum:
            return Look(watched.pointer, previous, judge(sides, rules))
    why = f"no version before it has {rules.minimum} counted recommendations yet"
    return Look(watched.pointer, watched.before[0], None, why)


def watch(connection: Connection) -> Watch:
    """Whom to watch now: nobody after a rollback, so that one never leads to the next, and nobody whom a person has
    brought back after an automatic one."""
    pointer = adapters.read_pointer(connection)
    if pointer.base_id is None:
        return Watch(pointer, None, (), "no base is active")
    moves = adapters.activations_of_base(connection, pointer.base_id)
    last = moves[-1]
    if last.action not in (Action.PROMOTE, Action.WINDOW):
        return Watch(pointer, last.created_at, (), "the last move of the pointer was no promotion")
    if any(m.actor == ACTOR and m.from_version == pointer.adapter_version for m in moves):
        return Watch(pointer, last.created_at, (), "it was rolled back automatically before, and promoted by a person")
    state = adapters.states_of(connection, pointer.base_id)
    before: list[Before] = []
    for version in reversed(states.served_stack([states.Move(move.action, move.to_version) for move in moves])[:-1]):
        known = version == pointer.adapter_version or version in (one.target for one in before)
        if not known and (version is None or state[version] in states.RESTORABLE):
            before.append(Before(version, version or pointer.base_id, _served_since(moves, version)))
    if not before:
        return Watch(pointer, last.created_at, (), "nothing served before it that could be gone back to")
    return Watch(pointer, last.created_at, tuple(before[:DEEPEST]))


def _served_since(moves: list[ActivationRow], version: str | None) -> datetime:
    return max(move.created_at for move in moves if move.to_version == version)


def act(
    database: Database, clock: Clock, settings: Settings, artifacts: ArtifactStore, lease: Lease
) -> Activation | None:
    """Look, and roll back if the serving version fell below the one before it and ADAPTIDE_ROLLBACK_AUTOMATIC is on.

    None when nothing was moved. Raises LeaseLost, StoreUnavailable.
    """
    found = look(database, settings)
    if found.decision is None or found.previous is None or not found.decision.fell:
        return None
    serving, previous, why = found.pointer.adapter_version, found.previous, found.decision.why
    if not settings.rollback_automatic:
        log.warning("live_quality_fell", adapter_version=serving, previous=previous.model, reason=why)
        return None
    reason = f"live hit rate: {why} ({found.decision.control.value} control)"
    revision = found.pointer.revision
    request = MoveRequest(ACTOR, reason, revision, f"{ACTOR} {revision}")
    with database.write() as connection:
        leases.check(connection, lease)
    try:
        done = registry.rollback(database, clock, artifacts, request, previous.target or BASE_TARGET)
    except PreconditionFailed:  # somebody moved the pointer: what was judged does not serve any more
        log.info("automatic_rollback_overtaken", adapter_version=serving)
        return None
    except (ArtifactError, Conflict, NotFound) as error:
        log.error("automatic_rollback_refused", adapter_version=serving, target=previous.model, reason=error.detail)
        return None
    AUTOMATIC_ROLLBACKS.inc()
    log.error("rolled_back_automatically", from_version=serving, to=previous.model, reason=reason)
    return done
