"""What a window can be and when one is due. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum


class WindowState(StrEnum):
    SEALED = "sealed"
    """Its range is fixed; nobody works on it."""
    TRAINING = "training"
    """An updater works on it, under the lease fence in its row."""
    PROMOTED = "promoted"
    """Its adapter held at the gate and became the active one."""
    CANARY = "canary"
    """Its adapter held at the gate and was put on a share of the users before it is promoted (ADAPTIDE_PROMOTE)."""
    REFUSED = "refused"
    """The gate refused its adapter."""
    NO_CHANGE = "no_change"
    """Training found nothing better than the incumbent on validation."""
    SKIPPED = "skipped"
    """It was not trained: too little in it, no base, or a base that was trained on it."""
    FAILED = "failed"
    """An attempt failed; it is tried again while attempts are left."""
    BASE = "base"
    """Its events trained the base; there is nothing to update with them."""


OUTCOMES = frozenset(
    {
        WindowState.PROMOTED,
        WindowState.CANARY,
        WindowState.REFUSED,
        WindowState.NO_CHANGE,
        WindowState.SKIPPED,
    }
)
"""How an update ends for good."""
TERMINAL = OUTCOMES | {WindowState.BASE}

TRANSITIONS: dict[WindowState, frozenset[WindowState]] = {
    WindowState.SEALED: frozenset({WindowState.TRAINING, WindowState.SKIPPED}),
    # To itself: a fresh attempt on a window whose updater was lost.
    WindowState.TRAINING: OUTCOMES | {WindowState.TRAINING, WindowState.FAILED},
    WindowState.FAILED: frozenset({WindowState.TRAINING, WindowState.SKIPPED}),
    **{state: frozenset() for state in TERMINAL},
}


LONGEST_PAUSE = timedelta(hours=1)
"""Between two attempts at a window; windows behind it wait as well."""


class SealedBecause(StrEnum):
    AGE = "age"
    COUNT = "count"
    MANUAL = "manual"
    BASE = "base"


def allowed(old: WindowState, new: WindowState) -> bool:
    """Whether a window may go from `old` to `new`."""
    return new in TRANSITIONS[old]


def settled(state: WindowState, attempts: int, limit: int) -> bool:
    """Whether nothing more will be done for a window, so that the next one may be taken up."""
    return state in TERMINAL or (state is WindowState.FAILED and attempts >= limit)


def next_attempt(
    state: WindowState, attempts: int, finished_at: datetime | None, *, limit: int, pause: timedelta
) -> datetime | None:
    """When a failed window may be tried again: `pause` after its first failure, twice that after the next, and so on.

    At once where no attempt counts, since the only ones were left when their updater was told to stop, or overtaken.

    LONGEST_PAUSE at most, or `pause` where that is longer. None for one that did not fail, or failed for good.
    """
    if state is not WindowState.FAILED or finished_at is None or attempts >= limit:
        return None
    if attempts < 1:
        return finished_at
    return finished_at + min(pause * (1 << min(attempts - 1, 20)), max(pause, LONGEST_PAUSE))


@dataclass(frozen=True, slots=True)
class Pending:
    """The open window: events that are in no sealed one. events: counted up to the limit asked for."""

    after_seq: int
    events: int
    first_received_at: datetime | None


def due(
    pending: Pending, now: datetime, *, max_age: timedelta, max_events: int, min_events: int
) -> SealedBecause | None:
    """Why the open window should be sealed now, or None. Its age counts from the arrival of its first event."""
    if pending.events >= max_events:
        return SealedBecause.COUNT
    if pending.first_received_at is None or pending.events < min_events:
        return None
    return SealedBecause.AGE if now - pending.first_received_at >= max_age else None
