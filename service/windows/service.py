"""The life of a window: sealed, claimed under a lease, concluded once.

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
from service.errors import Conflict, LeaseLost, NotFound
from service.kit import leases
from service.kit.clock import Clock
from service.kit.db import Database
from service.kit.leases import Lease
from service.settings import Settings
from service.windows import repository, states
from service.windows.repository import Evaluation, Window
from service.windows.sealing import close, due, finish, horizon, install_base, require_allowed, seal
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
    "read_page",
    "read_window",
    "record_evaluation",
    "report_steps",
    "seal",
]

UPDATER_LEASE = "updater"
"""Name of the lease under which windows are worked on."""
_WITH_CANDIDATE = (WindowState.PROMOTED, WindowState.REFUSED)

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


@dataclass(frozen=True, slots=True)
class WindowPage:
    """Windows newest first, and the open one (counted up to window_max_events)."""

    windows: list[Window]
    next_before: int | None
    open: Pending


def read_page(database: Database, settings: Settings, *, limit: int = 50, before: int | None = None) -> WindowPage:
    with database.read() as connection:
        found = repository.page(connection, limit=limit + 1, before=before)
        pending = repository.read_pending(connection, settings.window_max_events)
    shown = found[:limit]
    return WindowPage(shown, shown[-1].window_id if len(found) > limit else None, pending)


def read_window(database: Database, window_id: int) -> Window:
    """Raises NotFound."""
    with database.read() as connection:
        window = repository.find(connection, window_id)
    if window is None:
        raise NotFound(f"there is no window {window_id}")
    return window


def claim(
    database: Database, clock: Clock, settings: Settings, lease: Lease, *, method: str | None = None
) -> Window | None:
    """The oldest window that still needs an outcome, now being trained under `lease`; None when there is none.

    A window is never claimed before all earlier ones are done with. One that an earlier holder left unfinished is
    taken over; one that was left or failed window_attempts times stays failed. Raises LeaseLost.
    """
    now = clock()
    with database.write() as connection:
        leases.check(connection, lease, now)
        for window in repository.in_states(connection, [WindowState.SEALED, WindowState.TRAINING, WindowState.FAILED]):
            if states.settled(window.state, window.attempts, settings.window_attempts):
                continue
            if window.attempts >= settings.window_attempts:  # lost while training, as often as is allowed
                reason = window.reason or "the updater was lost while it worked on this window"
                finish(connection, window, WindowState.FAILED, now, reason=reason)
                log.error("window_given_up", window_id=window.window_id, attempts=window.attempts)
                continue
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
            return repository.find(connection, window.window_id)
    return None


def report_steps(
    database: Database, clock: Clock, window_id: int, lease: Lease, steps: Sequence[dict[str, Any]]
) -> None:
    """Show how far a claimed window has come. Raises LeaseLost."""
    with database.write() as connection:
        _require_claimed(connection, window_id, lease, clock())
        repository.update(connection, window_id, {"steps": list(steps)})


def record_evaluation(database: Database, clock: Clock, window_id: int, lease: Lease, evaluation: Evaluation) -> None:
    """Record one evaluation of a claimed window before it is concluded. Raises LeaseLost."""
    now = clock()
    with database.write() as connection:
        _require_claimed(connection, window_id, lease, now)
        repository.write_evaluation(connection, window_id, evaluation, now)


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
) -> Activation | None:
    """Write a claimed window's one outcome: evaluations, the adapter if any, its promotion, the verdict.

    All or nothing, in one transaction.

    expected_revision: the revision that the candidate was compared under. When an admin has moved the pointer since,
    a promotion raises PreconditionFailed and nothing is written: the window is to be trained again from what serves
    now. Raises LeaseLost when the lease or the claim is no longer this updater's, ArtifactError when the published
    candidate does not verify, Conflict when the verdict and the candidate do not go together.
    """
    if outcome.verdict not in OUTCOMES:
        raise Conflict(f"an update does not end as {outcome.verdict}; see fail() for failures")
    promoted, candidate = outcome.verdict is WindowState.PROMOTED, outcome.candidate
    if (promoted and candidate is None) or (candidate and outcome.verdict not in _WITH_CANDIDATE):
        raise Conflict("a promoted window has a candidate, a refused one may have one, no other has")
    if promoted and candidate is not None:
        _verify(database, artifacts, candidate)
    now, activation = clock(), None
    with database.write() as connection:
        window = _require_claimed(connection, window_id, lease, now)
        for evaluation in outcome.evaluations:
            repository.write_evaluation(connection, window_id, evaluation, now)
        if candidate is not None:
            if candidate.window_id != window_id:
                raise Conflict(f"candidate {candidate.adapter_version} is not of window {window_id}")
            request = MoveRequest(actor, outcome.reason, expected_revision)
            pointer = adapters_repository.read_pointer(connection, lock=True)
            state = AdapterState.PASSED if promoted else AdapterState.REFUSED
            adapters.register_adapter_in(connection, clock, candidate, state)
            if promoted:
                moves.check_revision(pointer, request)
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
) -> bool:
    """Note that an attempt failed; True when the window will be tried again. Raises LeaseLost."""
    now = clock()
    with database.write() as connection:
        window = _require_claimed(connection, window_id, lease, now)
        extra: dict[str, object] = {} if steps is None else {"steps": list(steps)}
        finish(connection, window, WindowState.FAILED, now, reason=reason[:2000], **extra)
    again = window.attempts < settings.window_attempts
    log.warning("window_failed", window_id=window_id, attempt=window.attempts, again=again, reason=reason)
    return again


def _require_claimed(connection: Connection, window_id: int, lease: Lease, now: datetime) -> Window:
    """The window, locked. Raises LeaseLost unless it is being trained under `lease`, which is in force."""
    leases.check(connection, lease, now)
    window = repository.find(connection, window_id, lock=True)
    if window is None or window.state is not WindowState.TRAINING or window.lease_fence != lease.fence:
        raise LeaseLost(f"window {window_id} is no longer this updater's to work on; nothing was written")
    return window


def _verify(database: Database, artifacts: ArtifactStore, candidate: NewAdapter) -> None:
    """Raises ArtifactError unless the folder on disk is what is about to be registered."""
    with database.read() as connection:
        base = require_base(connection, candidate.base_id)
    dimensions = artifacts.read_dimensions(base.base_id, base.digest)
    artifacts.verify_adapter(candidate.adapter_version, candidate.digest, base.base_id, dimensions)
