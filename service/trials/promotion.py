"""ADAPTIDE_PROMOTE=canary: a window's candidate answers a share of the users, and is promoted if nobody objects."""

from datetime import timedelta
from enum import Enum, auto

import structlog
from sqlalchemy.engine import Connection

from service.adapters import repository as adapters
from service.adapters.artifacts import ArtifactStore
from service.adapters.integrity import verify
from service.adapters.moves import MoveRequest
from service.adapters.repository import Pointer
from service.adapters.service import promote_in
from service.errors import Conflict
from service.kit import leases
from service.kit.clock import Clock
from service.kit.db import Database
from service.kit.leases import Lease
from service.trials import repository
from service.trials import service as trials
from service.trials.ending import settle
from service.trials.repository import TrialRow
from service.trials.states import EndReason, Kind

UPDATER = "updater"

log = structlog.get_logger(__name__)


class Held(Enum):
    """What became of the updater's canary."""

    NONE = auto()
    """There is none any more, or somebody else has taken it over."""
    WAITING = auto()
    """It is not over, or its candidate cannot be read just now."""
    PROMOTED = auto()


def begin_in(
    connection: Connection, clock: Clock, pointer: Pointer, version: str, share: float, request: MoveRequest
) -> None:
    """Put a registered adapter on trial inside the caller's transaction, which holds the pointer; another candidate's
    trial ends. It has no end of its own: `promote_if_held` sees to that."""
    latest = repository.latest(connection)
    if latest is not None and latest.trial is not None:
        latest = trials.end_in(connection, clock, latest, EndReason.SUPERSEDED, request)
    trials.run_in(connection, clock, pointer, latest, trials.Wanted(version, Kind.CANARY, share), request)


def under_way(connection: Connection) -> TrialRow | None:
    """The row of the updater's own canary; None when there is none. Whoever changes a trial takes it over."""
    latest = repository.latest(connection)
    return latest if latest is not None and latest.actor == UPDATER and latest.trial is not None else None


def promote_if_held(
    database: Database, clock: Clock, artifacts: ArtifactStore, duration: timedelta, lease: Lease
) -> Held:
    """Promote the candidate that the updater put on trial once it has been there for `duration`.

    Whoever changes the trial takes it over; whoever ends it decides against the candidate, up to the very transaction
    that promotes it. Raises LeaseLost, StoreUnavailable.
    """
    with database.read() as connection:
        row = under_way(connection)
    if row is None:
        return Held.NONE
    if clock() < row.started_at + duration:
        return Held.WAITING
    try:
        verify(database, clock, artifacts, row.adapter_version, actor=UPDATER)
    except Conflict as error:  # damaged, which has ended the trial; or out of reach, which may pass
        trials.end_if_over(database, clock)
        with database.read() as connection:
            held = Held.WAITING if under_way(connection) == row else Held.NONE
        log.error("canary_not_promoted", adapter_version=row.adapter_version, reason=error.detail, held=held.name)
        return held
    with database.write() as connection:
        leases.check(connection, lease)
        pointer = adapters.read_pointer(connection, lock=True)
        if under_way(connection) != row:  # ended or taken over while the files were read
            return Held.NONE
        if settle(connection, clock, pointer, actor=UPDATER) is not None:
            return Held.NONE
        candidate = adapters.find_adapter(connection, row.adapter_version)
        if candidate is None or candidate.parent_version != pointer.adapter_version:
            # As at once, where the revision is asked for: whoever rolled back meant what came of it as well.
            trials.end_in(connection, clock, row, EndReason.CONTROL_CHANGED, MoveRequest(UPDATER))
            log.warning("canary_not_promoted", adapter_version=row.adapter_version, reason="another adapter serves")
            return Held.NONE
        promote_in(connection, clock, pointer, row.adapter_version, MoveRequest(UPDATER, "its canary held"))
    return Held.PROMOTED
