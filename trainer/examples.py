"""A window's interactions -> training sequences, validation and test cases (METHODS.md, settings of the paper).

Pure: rows of the catalogue in, rows out. Per user with enough interactions in the window: the last item is the test,
the second-last the validation, every other one a training target, each with the items before it as history, earlier
windows included. Only an item that is new to the user can be a test or validation item, since the service does not
recommend what a user has already seen; what lies after the validation item is never trained on. So a user is one test
and one validation case at most, however much it does; what it does to the training has bounds that a caller may set.
"""

from bisect import bisect_left
from collections import Counter
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

    seen: rows that the service would exclude; never holds the target. earlier: how much of the user the model could
    have known before the window, in interactions; 0: a user that is new to it.
    """

    user_id: str
    history: Rows
    target: int
    seen: Rows
    earlier: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSequence:
    """Rows in time order; those from index `first_target` on are targets, those before are history only.

    user: the number of the user among those of the same Examples, whose pieces follow each other.
    """

    rows: Rows
    first_target: int
    user: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """capped_users: those of whom not every target is trained on; capped_targets: how many of theirs are not."""

    training: tuple[TrainingSequence, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]
    capped_users: int = 0
    capped_targets: int = 0

    @property
    def targets(self) -> int:
        """How many items are trained on."""
        return sum(len(s.rows) - s.first_target for s in self.training)

    @property
    def learnable(self) -> bool:
        """Whether an adapter can be updated with them: there is something to train on and something to judge it by."""
        return bool(self.training and self.validation)


def build_examples(
    streams: Sequence[UserStream],
    *,
    history_items: int,
    min_events: int,
    piece: int | None = None,
    user_share: float = 1.0,
    user_targets: int | None = None,
    repeats: int | None = None,
) -> Examples:
    """Leave-one-out over one window; users with fewer than `min_events` interactions in it are left out.

    piece: most targets in one training sequence (default: half of history_items). user_share, user_targets: see
    target_cap; of a user above the cap the latest targets are kept, and what lies before them is history only.
    repeats: so often an item is trained on for one user, the latest times; the others are passed over.
    """
    kept: list[tuple[Rows, int]] = []
    passed_over: list[int] = []
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
                    first,
                )
            )
            end = place
        own = rows[first:end] if repeats is None else latest_of_each(rows[first:end], repeats)
        kept.append((np.concatenate([rows[:first], own]), first))
        passed_over.append(end - first - len(own))
    cap = target_cap([len(rows) - first for rows, first in kept], share=user_share, most=user_targets)
    training: list[TrainingSequence] = []
    for user, (rows, first) in enumerate(kept):
        start = max(first, len(rows) - cap)
        passed_over[user] += start - first
        training.extend(pieces(rows, start, history_items, piece or (history_items + 1) // 2, user))
    capped_users = sum(count > 0 for count in passed_over)
    return Examples(tuple(training), tuple(validation), tuple(test), capped_users, sum(passed_over))


def target_cap(targets: Sequence[int], *, share: float, most: int | None = None) -> int:
    """The most targets that one user may have: `most`, and no more than `share` of all that are then left.

    targets: how many each user has. Of U users with any, each may have twice an equal share, 2 / U, where that is more
    than `share`: a few users that do alike are no attack, and whatever is cut cannot make them many. Nobody is cut
    below the user with the fewest.
    """
    counts = np.array([count for count in targets if count > 0], dtype=np.int64)
    if not len(counts):
        return 0
    allowed = max(share, 2 / len(counts))
    largest = int(counts.max())
    # The share of whoever is cut to a cap rises with it, so the caps that are small enough come first.
    caps = range(1, largest + 1)
    cap = bisect_left(caps, True, key=lambda cap: cap > allowed * np.minimum(counts, cap).sum())
    return cap if most is None else min(cap, most)


def latest_of_each(rows: Rows, most: int) -> Rows:
    """The rows in their order, of each row only its last `most` occurrences."""
    found: Counter[int] = Counter()
    keep = np.ones(len(rows), dtype=bool)
    for place in range(len(rows) - 1, -1, -1):
        found[row := int(rows[place])] += 1
        keep[place] = found[row] <= most
    return rows[keep]


def pieces(rows: Rows, first_target: int, history_items: int, piece: int, user: int = 0) -> Iterator[TrainingSequence]:
    """Cut one user's rows so that every row from `first_target` on is a target exactly once, behind its history.

    The history before a piece is so long that its last target still sees no more than `history_items` (the service's
    prompt) and its first one as much as that leaves: with 20 and pieces of 10, between 11 and 20 items.
    """
    before = max(1, history_items + 1 - piece)
    for start in range(first_target, len(rows), piece):
        context = max(0, start - before)
        yield TrainingSequence(rows[context : start + piece], start - context, user)


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
            cases.append(Case(stream.user_id, history, int(rows[place]), seen, len(stream.earlier)))
    return cases
