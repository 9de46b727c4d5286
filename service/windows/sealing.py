"""Closing the open window, by age, by count, by hand, or because a base was trained on it."""

from collections.abc import Callable
from datetime import datetime

import structlog
from sqlalchemy.engine import Connection

from service.adapters import repository as adapters_repository
from service.adapters import service as adapters
from service.adapters.moves import Activation
from service.adapters.repository import NewAdapter, NewBase
from service.adapters.states import AdapterState
from service.audit import repository as audit
from service.errors import Conflict
from service.events import repository as events_repository
from service.kit import leases
from service.kit.clock import Clock
from service.kit.crash_points import CrashPoint, crash_point
from service.kit.db import Database
from service.kit.leases import Lease
from service.settings import Settings
from service.windows import repository, states
from service.windows.repository import Window
from service.windows.states import SealedBecause, WindowState

SEAL_TIMEOUT_S = 1.0  # events wait behind a sealer that waits; RELIABILITY 14 gives them 2 s

log = structlog.get_logger(__name__)


def due(database: Database, clock: Clock, settings: Settings) -> SealedBecause | None:
    """Why the open window should be sealed now, or None; see states.due."""
    with database.read() as connection:
        pending = repository.read_pending(connection, settings.window_max_events)
    return states.due(
        pending,
        clock(),
        max_age=settings.window_max_age,
        max_events=settings.window_max_events,
        min_events=settings.window_min_events,
    )


def seal(
    database: Database,
    clock: Clock,
    settings: Settings,
    because: SealedBecause,
    *,
    through_seq: int | None = None,
    actor: str | None = None,
    lease: Lease | None = None,
) -> Window | None:
    """Close the open window; None when it holds no event.

    through_seq: only events up to it; otherwise all that are acknowledged, of which a seal by count takes the first
    window_max_events. actor: whoever asked for it by hand, for the audit log. lease: under which the caller seals.
    Raises LeaseLost when that is no longer held, StoreUnavailable when a slow writer is in the way for more than a
    second; nothing is sealed then.
    """
    limit = settings.window_max_events if because is SealedBecause.COUNT else None
    with database.write() as connection:
        if lease is not None:
            leases.check(connection, lease)
        window = _seal_in(connection, clock(), because, through_seq, limit)
        if window is not None and actor is not None:
            details = {"through_seq": window.through_seq, "events": window.events, "because": because.value}
            subject = str(window.window_id)
            audit.append(connection, now=clock(), actor=actor, action="window.close", subject=subject, details=details)
    if window is not None:
        crash_point(CrashPoint.SEALED)
        log.info("window_sealed", window_id=window.window_id, events=window.events, because=because.value)
    return window


def horizon(database: Database) -> int:
    """The highest sequence number below which every event is visible; 0 without events. Raises as `seal` does."""
    with database.write() as connection:
        repository.lock_event_order(connection, SEAL_TIMEOUT_S)
        return events_repository.max_seq(connection)


def missed_by_base(database: Database, through_seq: int) -> int:
    """Events in windows after `through_seq`, where a base ends, that are done with: no adapter of it has them."""
    with database.read() as connection:
        return repository.done_after(connection, through_seq)


def close(database: Database, clock: Clock, settings: Settings, *, actor: str) -> Window:
    """Seal by hand. Raises Conflict when there is nothing to seal."""
    window = seal(database, clock, settings, SealedBecause.MANUAL, actor=actor)
    if window is None:
        raise Conflict("no event has arrived since the last window was closed, so there is nothing to close")
    return window


def install_base(
    database: Database,
    clock: Clock,
    base: NewBase,
    *,
    through_seq: int,
    actor: str,
    adapter: NewAdapter | None = None,
    first: Callable[[Connection], object] | None = None,
) -> Activation:
    """Register and activate a base that was trained on every event up to `through_seq`, with its first adapter if any.

    In one transaction: the events that it was trained on become a window that needs no update, and windows that were
    still waiting within them are skipped. `first` runs before all that in the same transaction, such as encoding the
    catalogue with the new codec (before, because the rest holds up writers of events). Raises Conflict when the base
    is known with another digest, or the adapter may not serve.
    """
    now = clock()
    with database.write() as connection:
        if first is not None:
            first(connection)
        _seal_in(connection, now, SealedBecause.BASE, through_seq, None, base.base_id)
        for window in repository.in_states(connection, [WindowState.SEALED, WindowState.TRAINING, WindowState.FAILED]):
            if window.through_seq <= through_seq:
                reason = f"base {base.base_id} was trained on these events"
                finish(connection, window, WindowState.SKIPPED, now, reason=reason)
        adapters.register_base_in(connection, clock, base)
        if adapter is not None and adapters_repository.find_adapter(connection, adapter.adapter_version) is None:
            adapters.register_adapter_in(connection, clock, adapter, AdapterState.PASSED)
        version = None if adapter is None else adapter.adapter_version
        return adapters.activate_base_in(connection, clock, base.base_id, actor=actor, adapter_version=version)


def _seal_in(
    connection: Connection,
    now: datetime,
    because: SealedBecause,
    through_seq: int | None,
    limit: int | None,
    base_id: str | None = None,
) -> Window | None:
    leases.bound_pauses(connection)  # every writer of events waits behind this
    repository.lock_event_order(connection, SEAL_TIMEOUT_S)
    after = repository.last_through_seq(connection)
    events, highest = repository.measure(connection, after, through_seq, limit)
    if events == 0:
        return None
    state = WindowState.BASE if because is SealedBecause.BASE else WindowState.SEALED
    values = {
        "after_seq": after,
        "through_seq": highest,
        "events": events,
        "state": state.value,
        "sealed_at": now,
        "sealed_because": because.value,
        "attempts": 0,
        "base_id": base_id,
    }
    return repository.find(connection, repository.insert(connection, values))


def require_allowed(window: Window, state: WindowState) -> None:
    """Raises Conflict unless the window may go to `state`."""
    if not states.allowed(window.state, state):
        raise Conflict(f"window {window.window_id} is {window.state} and cannot become {state}")


def finish(
    connection: Connection, window: Window, state: WindowState, now: datetime, *, reason: str | None, **extra: object
) -> None:
    """End a window, or one attempt at it, in `state`. Raises Conflict when it cannot go there."""
    require_allowed(window, state)
    values = {"state": state.value, "verdict": state.value, "reason": reason, "finished_at": now, **extra}
    repository.update(connection, window.window_id, values)
