"""What a backtest's numbers say: means, paired intervals, forgetting, groups of users. Pure.

A user is the unit of chance: users are resampled with all of their blocks, a user's seeds are averaged first, and
blocks count alike, as in the paper's tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation import ndcg
from trainer.gate import RESAMPLES

METRICS = ("hit@5", "hit@10", "ndcg@5", "ndcg@10")
CONFIDENCE = 0.95
_DRAWS = 4_000_000  # held in memory at once

Float64 = NDArray[np.float64]


def user_scores(ranks: Sequence[int]) -> Float64:
    """float64 [users, 4], a column for each of METRICS, from 1-based ranks (0: not among the first 10)."""
    own = np.asarray(ranks, dtype=np.int64)
    hits = [(own > 0) & (own <= k) for k in (5, 10)]
    return np.stack([*hits, ndcg(own, 5), ndcg(own, 10)], axis=1).astype(np.float64)


def mean_over_blocks(blocks: Sequence[Float64]) -> Float64:
    """float64 [columns]: users averaged within each block (float64 [users, columns]), blocks with equal weight."""
    return np.asarray(np.mean([own.mean(axis=0) for own in blocks], axis=0))


def bootstrap_intervals(
    differences: Sequence[Float64],
    users: Sequence[Sequence[str]],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Float64:
    """Percentile intervals of mean_over_blocks(differences): float64 [columns, 2], low and high.

    differences: per block float64 [users, columns], method - baseline, seeds averaged; at least one user in each.
    users: per block the ids, each at most once. People are drawn with replacement from those of all blocks together,
    the same draw for all columns; whoever is drawn is so in each of their blocks, as a user's cells are no independent
    evidence. A block of which a draw has nobody is left out of that draw. For one block and one column this is
    trainer.gate.paired_bootstrap. The same seed and input give the same intervals.
    """
    place_of: dict[str, int] = {}
    places = [np.array([place_of.setdefault(user, len(place_of)) for user in own]) for own in users]
    people = len(place_of)
    random = np.random.default_rng(seed)
    means = np.zeros((resamples, differences[0].shape[1]))
    part = max(1, _DRAWS // people)
    for start in range(0, resamples, part):
        stop = min(start + part, resamples)
        drawn = random.integers(people, size=(stop - start, people))
        cell = drawn + people * np.arange(stop - start)[:, None]
        times = np.bincount(cell.ravel(), minlength=cell.size).reshape(cell.shape).astype(np.float64)
        blocks = np.zeros((stop - start, 1))
        for block, own in zip(differences, places, strict=True):
            there = times[:, own]
            weight = there.sum(axis=1, keepdims=True)
            means[start:stop] += there @ block / np.maximum(weight, 1)
            blocks += weight > 0
        means[start:stop] /= blocks
    tail = (1 - confidence) / 2
    return np.asarray(np.quantile(means, [tail, 1 - tail], axis=0).T)


@dataclass(frozen=True, slots=True)
class Transfer:
    """What learning a block did to the others; None where the matrix does not tell.

    forgetting: best since a block was learnt minus what is left after the last one, mean over all but the last
    (Chaudhry et al., 2018). backward: after the last block minus right after its own (Lopez-Paz & Ranzato, 2017).
    forward: just before a block is learnt minus with adapter 1, mean over the blocks from D_3 on.
    """

    forgetting: float | None
    backward: float | None
    forward: float | None


def transfer(matrix: Float64) -> Transfer:
    """matrix: float64 [stages, blocks], square, the metric of the adapter after block i on block j; NaN: not known."""
    last = len(matrix) - 1
    kept = [(matrix[j:last, j], matrix[last, j]) for j in range(last)]
    forgotten = [np.nanmax(own) - end for own, end in kept if not np.isnan(own).all()]
    return Transfer(
        forgetting=mean_of_known(forgotten),
        backward=mean_of_known([matrix[last, j] - matrix[j, j] for j in range(last)]),
        forward=mean_of_known([matrix[j - 1, j] - matrix[0, j] for j in range(2, last + 1)]),
    )


def halves(values: Sequence[float | None]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """bool [users] twice: above the median, and at or below it; users without a value are in neither.

    Where half of them or more share the largest value, they are the first half and all others the second. Users who are
    all alike are in neither.
    """
    own = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    found = own[~np.isnan(own)]
    smaller = found[found < found.max()] if len(found) else found
    if not len(smaller):
        nobody = np.zeros(len(own), dtype=np.bool_)
        return nobody, nobody
    cut = min(np.median(found), smaller.max())
    return own > cut, own <= cut  # neither holds for nan


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Of those that are neither None nor NaN; None where none is."""
    known = [float(value) for value in values if value is not None and not np.isnan(value)]
    return sum(known) / len(known) if known else None
