"""What an adapter can be, what it can become, and what a rollback goes back to. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum


class AdapterState(StrEnum):
    CANDIDATE = "candidate"
    """Published and registered, not judged."""
    PASSED = "passed"
    """The gate held; it has never served."""
    ACTIVE = "active"
    """The pointer names it."""
    RETIRED = "retired"
    """It has served and passed on the pointer."""
    REFUSED = "refused"
    """The gate refused it; for good."""
    CORRUPT = "corrupt"
    """Its folder is not what was published. Restored files are readmitted by a verification that succeeds."""
    COLLECTED = "collected"
    """Garbage collection removed its files; for good."""


TRANSITIONS: dict[AdapterState, frozenset[AdapterState]] = {
    AdapterState.CANDIDATE: frozenset(
        {
            AdapterState.PASSED,
            AdapterState.REFUSED,
            AdapterState.ACTIVE,
            AdapterState.CORRUPT,
            AdapterState.COLLECTED,
        }
    ),
    AdapterState.PASSED: frozenset({AdapterState.ACTIVE, AdapterState.CORRUPT, AdapterState.COLLECTED}),
    AdapterState.ACTIVE: frozenset({AdapterState.RETIRED, AdapterState.CORRUPT}),
    AdapterState.RETIRED: frozenset({AdapterState.ACTIVE, AdapterState.CORRUPT, AdapterState.COLLECTED}),
    # A refused adapter is never loaded, so there is nothing to mark; and no way round leads out of a refusal.
    AdapterState.REFUSED: frozenset({AdapterState.COLLECTED}),
    # Readmitted: still what the pointer names, or to be judged or promoted again.
    AdapterState.CORRUPT: frozenset({AdapterState.ACTIVE, AdapterState.CANDIDATE, AdapterState.COLLECTED}),
    AdapterState.COLLECTED: frozenset(),
}

INITIAL = frozenset({AdapterState.CANDIDATE, AdapterState.PASSED, AdapterState.REFUSED})
"""States in which an adapter may be registered."""
PROMOTABLE = frozenset({AdapterState.CANDIDATE, AdapterState.PASSED, AdapterState.RETIRED})
"""What an admin may promote: any verified adapter that is neither refused nor corrupt (nor active already)."""
RESTORABLE = frozenset({AdapterState.PASSED, AdapterState.RETIRED})
"""What a rollback may go to: what has served or has held at the gate."""

GONE = frozenset({AdapterState.CORRUPT, AdapterState.COLLECTED})
"""What has no files that could be read."""


def allowed(old: AdapterState, new: AdapterState) -> bool:
    """Whether an adapter may go from `old` to `new`."""
    return new in TRANSITIONS[old]


class Action(StrEnum):
    """What moved the pointer."""

    BASE = "base"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    WINDOW = "window"


@dataclass(frozen=True, slots=True)
class Move:
    """One row of the activations of the present base, or the row that installed it."""

    action: Action
    to_version: str | None


def served_stack(moves: Iterable[Move]) -> list[str | None]:
    """What a rollback can walk back through: the last element serves, None is the base without an adapter.

    moves: the base's activations, oldest first, beginning with the one that installed it. A base starts the stack,
    a promotion (by an admin or a window) is put on it. A rollback takes off the version that it leaves, and whatever
    lies above its target; a target that is not on the stack takes the place of the version left. So what was rolled
    back is never gone back to, however often one rolls back, until it is promoted anew.
    """
    stack: list[str | None] = []
    for move in moves:
        if move.action is Action.BASE:
            stack = [move.to_version]
        elif move.action is not Action.ROLLBACK:
            stack.append(move.to_version)
        else:
            below = stack[:-1]
            if move.to_version in below:
                last = len(below) - 1 - below[::-1].index(move.to_version)
                stack = below[: last + 1]
            elif move.to_version is None:
                stack = [None]
            else:
                stack = [*below, move.to_version]
    return stack


def previous(stack: list[str | None], restorable: Callable[[str], bool]) -> tuple[bool, str | None]:
    """(True, what served before the last element) or (False, None) when nothing is left to go back to.

    Versions that may not be restored, and repeats of the present one, are passed over.
    """
    for version in reversed(stack[:-1]):
        if version != stack[-1] and (version is None or restorable(version)):
            return True, version
    return False, None
