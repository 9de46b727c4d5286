"""A window's interactions -> training sequences, validation and test cases (METHODS.md, settings of the paper).

Pure: rows of the catalogue in, rows out. Per user with enough interactions in the window: the last item is the test,
the second-last the validation, every other one a training target, each with the items before it as history, earlier
windows included. Only an item that is new to the user can be a test or validation item, since the service does not
recommend what a user has already seen; what lies after the validation item is never trained on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class UserStream:
    """One user's catalogue rows in time order: `earlier` lie before the window, `window` in it."""

    user_id: str
    earlier: Rows
    window: Rows


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One question with a known answer: after `history` (rows, oldest first) the user took `target`.

    seen: rows that the service would exclude; never holds the target.
    """

    user_id: str
    history: Rows
    target: int
    seen: Rows


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSequence:
    """Rows in time order; those from index `first_target` on are targets, those before are history only."""

    rows: Rows
    first_target: int


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    training: tuple[TrainingSequence, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]

    @property
    def targets(self) -> int:
        """How many items are trained on."""
        return sum(len(s.rows) - s.first_target for s in self.training)


def build_examples(
    streams: Sequence[UserStream], *, history_items: int, min_events: int, piece: int | None = None
) -> Examples:
    """Leave-one-out over one window; users with fewer than `min_events` interactions in it are left out.

    piece: most targets in one training sequence (default: half of history_items).
    """
    training: list[TrainingSequence] = []
    validation: list[Case] = []
    test: list[Case] = []
    for stream in streams:
        if len(stream.window) < min_events:
            continue
        rows = np.concatenate([stream.earlier, stream.window])
        first = len(stream.earlier)
        fresh = [i for i in first_occurrences(rows) if i >= first]
        end = len(rows)
        for place, cases in zip(reversed(fresh[-2:]), (test, validation), strict=False):
            cases.append(
                Case(
                    stream.user_id,
                    rows[max(0, place - history_items) : place],
                    int(rows[place]),
                    np.unique(rows[:place]),
                )
            )
            end = place
        training.extend(pieces(rows[:end], first, history_items, piece or (history_items + 1) // 2))
    return Examples(tuple(training), tuple(validation), tuple(test))


def pieces(rows: Rows, first_target: int, history_items: int, piece: int) -> Iterator[TrainingSequence]:
    """Cut one user's rows so that every row from `first_target` on is a target exactly once, behind its history.

    The history before a piece is so long that its last target still sees no more than `history_items` (the service's
    prompt) and its first one as much as that leaves: with 20 and pieces of 10, between 11 and 20 items.
    """
    before = max(1, history_items + 1 - piece)
    for start in range(first_target, len(rows), piece):
        context = max(0, start - before)
        yield TrainingSequence(rows[context : start + piece], start - context)


def first_occurrences(rows: Rows) -> list[int]:
    """Indices at which a row appears for the first time, rising."""
    return sorted(np.unique(rows, return_index=True)[1].tolist())


def sample_cases(cases: Sequence[Case], most: int, seed: int) -> list[Case]:
    """At most `most` cases, a seeded sample in their order."""
    if len(cases) <= most:
        return list(cases)
    chosen = np.sort(np.random.default_rng(seed).choice(len(cases), most, replace=False))
    return [cases[i] for i in chosen]


def prequential_cases(
    streams: Sequence[UserStream], *, history_items: int, per_user: int, users: int, seed: int
) -> list[Case]:
    """Next items of the window as they came, for judging a model that has not been trained on the window.

    Of each user with a new item in the window up to `per_user` of them, evenly spread, each with what lay before it as
    history; at most `users` users, a seeded sample above that.
    """
    cases: list[Case] = []
    chosen = range(len(streams))
    if len(streams) > users:
        chosen = np.sort(np.random.default_rng(seed).choice(len(streams), users, replace=False)).tolist()
    for i in chosen:
        stream = streams[i]
        rows = np.concatenate([stream.earlier, stream.window])
        fresh = [place for place in first_occurrences(rows) if place >= max(1, len(stream.earlier))]
        for pick in np.unique(np.linspace(0, len(fresh) - 1, min(per_user, len(fresh))).round().astype(int)).tolist():
            place = fresh[pick]
            history, seen = rows[max(0, place - history_items) : place], np.unique(rows[:place])
            cases.append(Case(stream.user_id, history, int(rows[place]), seen))
    return cases
