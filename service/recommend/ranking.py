"""Leaves -> items, and popularity -> items: the two ways in which a list comes about."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.catalog.trie import Int64, Trie
from service.generation.engine import Generated

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class RankedRows:
    """rows: int64 [k] catalogue rows in rank order; scores: float64 [k], falling."""

    rows: Int64
    scores: Float64


def rank_leaves(generated: Generated, trie: Trie, popularity: Float64, excluded: Int64, limit: int) -> RankedRows:
    """The first `limit` items of the generated leaves.

    Items that share a semantic ID have its score and are ranked among themselves by popularity (float64 [rows]), then
    by row. excluded: rows that are left out, int64.
    """
    rows: list[int] = []
    scores: list[float] = []
    hidden = set(excluded.tolist())
    starts, ends = (trie.row_start[generated.leaves + after].tolist() for after in (0, 1))
    for start, end, score in zip(starts, ends, generated.scores.tolist(), strict=True):
        own = trie.rows[start:end]
        if end - start > 1:
            own = own[np.lexsort((own, -popularity[own]))]
        live = [row for row in own.tolist() if row not in hidden]
        rows += live
        scores += [score] * len(live)
        if len(rows) >= limit:
            break
    return RankedRows(np.array(rows[:limit], dtype=np.int64), np.array(scores[:limit]))


def rank_popular(popularity: Float64, eligible: NDArray[np.bool_], excluded: Int64, limit: int) -> RankedRows:
    """The `limit` most popular eligible rows (bool [rows]), ties by row; score = popularity."""
    allowed = eligible.copy()
    allowed[excluded] = False
    rows = np.flatnonzero(allowed)
    weight = popularity[rows]
    if len(rows) > limit:
        # Everything that ties with the last place takes part in the final sort, so that ties fall by row.
        floor = np.partition(weight, len(rows) - limit)[len(rows) - limit]
        keep = weight >= floor
        rows, weight = rows[keep], weight[keep]
    order = np.lexsort((rows, -weight))[:limit]
    return RankedRows(rows[order], weight[order])
