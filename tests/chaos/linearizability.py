"""Whether what concurrent clients saw can have happened one after the other, each at some moment while it was asked.

The search of Wing and Gong (Testing and verifying concurrent objects, 1993) with the memory of Lowe (Testing for
linearizability, 2017): a set of operations that are done and the state they led to is looked at once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

S = TypeVar("S")


class Undecided(Exception):
    """The search would take too long."""


@dataclass(frozen=True)
class Operation:
    """What one client asked, from `began` to `ended`, and what it was told.

    told None: nobody knows. Then it has happened at any moment after `began`, or never will, and `ended` means nothing.
    """

    asked: object
    told: object | None
    began: float
    ended: float = math.inf

    @property
    def known(self) -> bool:
        return self.told is not None


@dataclass(frozen=True)
class Found(Generic[S]):
    """An order that explains the history, the state it leads to, and how many states were looked at."""

    order: list[Operation]
    state: S
    looked_at: int


def linearize(
    history: Sequence[Operation], step: Callable[[S, Operation], S | None], start: S, *, most: int = 2_000_000
) -> Found[S] | None:
    """An order of the operations that each client's answers and the times allow; None when there is none.

    step: the state after an operation, None when it cannot have been told what it was; for one of unknown outcome the
    state after its effect, None when it has none. Raises Undecided after `most` states.
    """
    operations = sorted(history, key=lambda operation: (not operation.known, operation.began))
    known = [number for number, operation in enumerate(operations) if operation.known]
    unknown = range(len(known), len(operations))
    wanted = (1 << len(known)) - 1

    def next_ones(done: int) -> list[int]:
        """Those that no undone one has ended before; the known first, since their answers narrow the search."""
        limit, found = math.inf, []
        for number in known:
            if done >> number & 1:
                continue
            if operations[number].began > limit:
                break  # they are in the order of their beginnings
            limit = min(limit, operations[number].ended)
            found.append(number)
        found = [number for number in found if operations[number].began <= limit]
        return found + [n for n in unknown if not done >> n & 1 and operations[n].began <= limit]

    seen: set[tuple[int, S]] = {(0, start)}
    path: list[tuple[int, S, list[int], int]] = [(0, start, next_ones(0), -1)]  # done, state, still to try, came by
    while path:
        done, state, to_try, _ = path[-1]
        if done & wanted == wanted:
            return Found([operations[by] for *_, by in path[1:]], state, len(seen))
        if not to_try:
            path.pop()
            continue
        number = to_try.pop(0)
        after = step(state, operations[number])
        here = done | 1 << number
        if after is None or (here, after) in seen:
            continue
        seen.add((here, after))
        if len(seen) > most:
            raise Undecided(f"{len(seen)} states for {len(operations)} operations")
        path.append((here, after, next_ones(here), number))
    return None


class Pointer(NamedTuple):
    """What serves; `served` is what can be gone back through, the last one serves."""

    revision: int
    version: str | None
    served: tuple[str | None, ...]


class Promote(NamedTuple):
    version: str
    revision: int | None = None
    """If-Match."""


class RollBack(NamedTuple):
    to: str | None
    """A version, "base", or None: what was before."""
    revision: int | None = None


class Read(NamedTuple):
    pass


class Told(NamedTuple):
    """The answer to a move that was made (status 200), to a read, or a refusal: 409 or 412."""

    status: int
    revision: int | None = None
    to: str | None = None
    left: str | None = None


def pointer_step(state: Pointer, operation: Operation) -> Pointer | None:
    """The pointer of a base whose adapters may all serve: what is promised of it, for `linearize`."""
    asked, told = operation.asked, operation.told
    if isinstance(asked, Read):
        return state if told in (None, Told(200, state.revision, state.version)) else None
    assert isinstance(asked, Promote | RollBack)
    if asked.revision is not None and asked.revision != state.revision:
        return state if told == Told(412) else None
    served = _promoted(state, asked) if isinstance(asked, Promote) else _rolled_back(state, asked)
    if served is None:
        return state if told == Told(409) else None
    after = Pointer(state.revision + 1, served[-1], served)
    return after if told in (None, Told(200, after.revision, after.version, state.version)) else None


def _promoted(state: Pointer, asked: Promote) -> tuple[str | None, ...] | None:
    return None if asked.version == state.version else (*state.served, asked.version)


def _rolled_back(state: Pointer, asked: RollBack) -> tuple[str | None, ...] | None:
    below = state.served[:-1]
    if asked.to is None:
        while below and below[-1] == state.version:
            below = below[:-1]
        return below or None
    target = None if asked.to == "base" else asked.to
    if target == state.version:
        return None
    for length in range(len(below), 0, -1):
        if below[length - 1] == target:
            return below[:length]
    return (None,) if target is None else (*below, target)
