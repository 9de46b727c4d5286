"""The life of a window: sealed, claimed under a lease, concluded once; over 300 lines, since each step guards the next.

Windows are contiguous ranges of the server's event sequence, so each acknowledged event is in exactly one. They are
worked on strictly in order, by the holder of the lease UPDATER_LEASE, whose fence each claimed window carries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy.engine import Connection

from service.adapters import moves
from service.adapters import repository as adapters_repository
from service.adapters import service as adapters
from service.adapters.artifacts import ArtifactStore
from service.adapters.integrity import require_base
from service.adapters.moves import Activation, MoveRequest
from service.adapters.repository import NewAdapter
from service.adapters.states import Action, AdapterState
from service.errors import Conflict, LeaseLost, NotFound, Overtaken
from service.kit import leases
from service.kit.clock import Clock
from service.kit.crash_points import CrashPoint, crash_point
from service.kit.db import Database
from service.kit.leases import Lease
from service.settings import Settings
from service.telemetry import WINDOWS_GIVEN_UP
from service.trials.promotion import begin_in
from service.users import service as users
from service.users.service import Learners
from service.windows import repository, states
from service.windows.repository import Evaluation, Window
from service.windows.sealing import close, due, finish, horizon, install_base, missed_by_base, require_allowed, seal
from service.windows.states import OUTCOMES, Pending, WindowState

__all__ = [
    "UPDATER_LEASE",
    "Outcome",
    "WindowPage",
    "claim",
    "close",
    "conclude",
    "due",
    "fail",
    "horizon",
    "install_base",
    "missed_by_base",
    "next_attempt_of",
    "read_closed",
    "read_page",
    "read_window",
    "record_evaluation",
    "report_steps",
    "require_claimed",
    "seal",
]

UPDATER_LEASE = "updater"
"""Name of the lease under which windows are worked on."""
ANOTHER_BASE = "another base was activated meanwhile; the window is tried again under it"
_HELD = (WindowState.PROMOTED, WindowState.CANARY)
"""With a candidate that held at the gate."""
_WITH_CANDIDATE = (*_HELD, WindowState.REFUSED)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an update ended. verdict: promoted, refused, no_change or skipped; a promoted one names its candidate."""

    verdict: WindowState
    reason: str | None = None
    candidate: NewAdapter | None = None
    incumbent_version: str | None = None
    evaluations: Sequence[Evaluation] = ()
    steps: Sequence[dict[str, Any]] = ()
    statistics: dict[str, Any] = field(default_factory=dict)
    learners: Learners | None = None
    """Whose events the candidate has learnt from."""


@dataclass(frozen=True, slots=True)
class WindowPage:
    """Windows newest first, and the open one (counted up to window_max_events)."""

    windows: list[Window]
    next_before: int | None
    open: Pending


def read_page(database: Database, settings: Settings, *, limit: int = 50, before: int | None = None) -> WindowPage:
    with database.read() as connection:
        closed, next_before = read_closed(connection, limit=limit, before=before)
        return WindowPage(closed, next_before, repository.read_pending(connection, settings.window_max_events))


def read_closed(connection: Connection, *, limit: int, before: int | None = None) -> tuple[list[Window], int | None]:
    """A page of windows, newest first, and `before` for the next one; the open window is not counted for it."""
    found = repository.page(connection, limit=limit + 1, before=before)
    shown = found[:limit]
    return shown, shown[-1].window_id if len(found) > limit else None


def read_window(database: Database, window_id: int) -> Window:
    """Raises NotFound."""
    with database.read() as connection:
        window = repository.find(connection, window_id)
    if window is None:
        raise NotFound(f"there is no window {window_id}")
    return window


def claim(
    database: Database,
    clock: Clock,
    settings: Settings,
    lease: Lease,
    *,
    method: str | None = None,
    at_once: bool = False,
) -> Window | None:
    """The oldest window that still needs an outcome, now being trained under `lease`; None when there is none.

    A window is never claimed before all earlier ones are done with. One that an earlier holder left unfinished is
    taken over; one that failed waits (states.next_attempt) unless `at_once`; one that was left or failed
    window_attempts times stays failed. Raises LeaseLost.
    """
    now = clock()
    with database.write() as connection:
        leases.check(connection, lease)
        for window in repository.in_states(connection, [WindowState.SEALED, WindowState.TRAINING, WindowState.FAILED]):
            if states.settled(window.state, window.attempts, settings.window_attempts):
                continue
            if window.attempts >= settings.window_attempts:  # lost while training, as often as is allowed
                reason = window.reason or "the updater was lost while it worked on this window"
                finish(connection, window, WindowState.FAILED, now, reason=reason)
                _give_up(window, reason)
                continue
            again = next_attempt_of(window, settings)
            if again is not None and not at_once and _between(window.finished_at, now, again):
                return None
            require_allowed(window, WindowState.TRAINING)
            pointer = adapters_repository.read_pointer(connection)
            repository.update(
                connection,
                window.window_id,
                {
                    "state": WindowState.TRAINING.value,
                    "lease_fence": lease.fence,
                    "attempts": window.attempts + 1,
                    "started_at": now,
                    "finished_at": None,
                    "verdict": None,
                    "reason": None,
                    "method": method or settings.method,
                    "base_id": pointer.base_id,
                    "incumbent_version": pointer.adapter_version,
                    "steps": [],
                    "statistics": {},
                },
            )
            claimed = repository.find(connection, window.window_id)
            break
        else:
            return None
    crash_point(CrashPoint.CLAIMED)
    return claimed


def next_attempt_of(window: Window, settings: Settings) -> datetime | None:
    """See states.next_attempt."""
    return states.next_attempt(
        window.state,
        window.attempts,
        window.finished_at,
        limit=settings.window_attempts,
        pause=settings.window_retry_pause,
    )


def require_claimed(connection: Connection, window_id: int, lease: Lease) -> Window:
    """The window, locked. Raises LeaseLost unless it is being trained under `lease`, which is in force."""
    leases.check(connection, lease)
    window = repository.find(connection, window_id, lock=True)
    if window is None or window.state is not WindowState.TRAINING or window.lease_fence != lease.fence:
        raise LeaseLost(f"window {window_id} is no longer this updater's to work on; nothing was written")
    return window


def report_steps(database: Database, window_id: int, lease: Lease, steps: Sequence[dict[str, Any]]) -> None:
    """Show how far a claimed window has come. Raises LeaseLost."""
    with database.write() as connection:
        require_claimed(connection, window_id, lease)
        repository.update(connection, window_id, {"steps": list(steps)})


def record_evaluation(database: Database, clock: Clock, window_id: int, lease: Lease, evaluation: Evaluation) -> None:
    """Record one evaluation of a claimed window before it is concluded. Raises LeaseLost."""
    with database.write() as connection:
        require_claimed(connection, window_id, lease)
        repository.write_evaluation(connection, window_id, evaluation, clock())


def conclude(
    database: Database,
    clock: Clock,
    artifacts: ArtifactStore,
    window_id: int,
    lease: Lease,
    outcome: Outcome,
    *,
    actor: str = "updater",
    expected_revision: int | None = None,
    canary_share: float = 0.1,
) -> Activation | None:
    """Write a claimed window's one outcome: evaluations, the adapter if any, its promotion, the verdict.

    All or nothing, in one transaction. canary_share: of the users who get the candidate where the verdict is canary.

    expected_revision: the revision that the candidate was compared under. When an admin has moved the pointer since,
    a promotion raises PreconditionFailed and nothing is written: the window is to be trained again from what serves
    now. Raises LeaseLost when the lease or the claim is no longer this updater's, ArtifactError when the published
    candidate does not verify, Conflict when the verdict and the candidate do not go together, Overtaken when a user
    that the candidate has learnt from was erased, or another base activated, meanwhile.
    """
    if outcome.verdict not in OUTCOMES:
        raise Conflict(f"an update does not end as {outcome.verdict}; see fail() for failures")
    held, candidate = outcome.verdict in _HELD, outcome.candidate
    if (held and candidate is None) or (candidate and outcome.verdict not in _WITH_CANDIDATE):
        raise Conflict("a promoted window has a candidate, a refused one may have one, no other has")
    if held and candidate is not None:
        _verify(database, artifacts, candidate)
    now, activation = clock(), None
    with database.write() as connection:
        window = require_claimed(connection, window_id, lease)
        for evaluation in outcome.evaluations:
            repository.write_evaluation(connection, window_id, evaluation, now)
        if candidate is not None and candidate.window_id != window_id:
            raise Conflict(f"candidate {candidate.adapter_version} is not of window {window_id}")
        if candidate is not None and outcome.learners is not None:
            users.require_none_erased(connection, outcome.learners)
        pointer = adapters_repository.read_pointer(connection, lock=True)
        if pointer.base_id != window.base_id:  # whatever the verdict: it says nothing about the base that serves now
            raise Overtaken(ANOTHER_BASE)
        if candidate is not None:
            request = MoveRequest(actor, outcome.reason, expected_revision)
            state = AdapterState.PASSED if held else AdapterState.REFUSED
            adapters.register_adapter_in(connection, clock, candidate, state)
            if held:
                moves.check_revision(pointer, request)
            if outcome.verdict is WindowState.CANARY:
                begin_in(connection, clock, pointer, candidate.adapter_version, canary_share, request)
            elif held:
                activation = adapters.promote_in(
                    connection,
                    clock,
                    pointer,
                    candidate.adapter_version,
                    request,
                    action=Action.WINDOW,
                    window_id=window_id,
                )
        extra: dict[str, object] = {"steps": list(outcome.steps), "statistics": outcome.statistics}
        if candidate is not None:
            extra["candidate_version"] = candidate.adapter_version
        if outcome.incumbent_version is not None:
            extra["incumbent_version"] = outcome.incumbent_version
        finish(connection, window, outcome.verdict, now, reason=outcome.reason, **extra)
        crash_point(CrashPoint.CONCLUDING)
    crash_point(CrashPoint.CONCLUDED)
    log.info("window_concluded", window_id=window_id, verdict=outcome.verdict.value, reason=outcome.reason)
    return activation


def fail(
    database: Database,
    clock: Clock,
    settings: Settings,
    window_id: int,
    lease: Lease,
    reason: str,
    *,
    steps: Sequence[dict[str, Any]] | None = None,
    counted: bool = True,
) -> bool:
    """Note that an attempt failed; True when the window will be tried again. Raises LeaseLost.

    counted: whether it was one of the attempts that a window is given. None was one that was left since its updater was
    told to stop, or that somebody overtook: an erased learner, another base, a moved pointer.
    """
    with database.write() as connection:
        window = require_claimed(connection, window_id, lease)
        attempts = window.attempts if counted else window.attempts - 1
        extra: dict[str, object] = {"attempts": attempts} | ({} if steps is None else {"steps": list(steps)})
        finish(connection, window, WindowState.FAILED, clock(), reason=reason[:2000], **extra)
    again = attempts < settings.window_attempts
    log.warning("window_failed", window_id=window_id, attempt=window.attempts, again=again, reason=reason)
    if not again:
        _give_up(window, reason)
    return again


def _give_up(window: Window, reason: str) -> None:
    WINDOWS_GIVEN_UP.inc()
    log.error("window_given_up", window_id=window.window_id, attempts=window.attempts, reason=reason)


def _between(start: datetime | None, now: datetime, end: datetime) -> bool:
    """Whether `now` lies in a wait that began at `start`: not when the clock has been set back behind it."""
    return start is not None and start <= now < end


def _verify(database: Database, artifacts: ArtifactStore, candidate: NewAdapter) -> None:
    """Raises ArtifactError unless the folder on disk is what is about to be registered."""
    with database.read() as connection:
        base = require_base(connection, candidate.base_id)
    dimensions = artifacts.read_dimensions(base.base_id, base.digest)
    artifacts.verify_adapter(candidate.adapter_version, candidate.digest, base.base_id, dimensions)
