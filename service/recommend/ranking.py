"""Leaves -> items, and popularity -> items: the two ways in which a list comes about."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.catalog.trie import Int16, Int64, Trie
from service.generation.engine import Generated
from service.kit.places import among
from service.recommend.diversity import spread_scores, spread_weights

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class RankedRows:
    """rows: int64 [k] catalogue rows in rank order; scores: float64 [k], falling unless the list is spread."""

    rows: Int64
    scores: Float64


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Which rows a list may hold, and how many.

    excluded: int64, any order, some more than once. allowed: int64, rising, none of them excluded: the only ones; None:
    all but the excluded ones. diversity: 0 to 1 (service.recommend.diversity).
    """

    limit: int
    excluded: Int64
    allowed: Int64 | None = None
    diversity: float = 0.0


def rank_leaves(
    generated: Generated,
    trie: Trie,
    popularity: Float64,
    excluded: Int64,
    limit: int,
    allowed: Int64 | None = None,
    diversity: float = 0.0,
) -> RankedRows:
    """The first `limit` items of the generated leaves.

    Items that share a semantic ID have its score and are ranked among themselves by popularity (float64 [rows]), then
    by row. excluded: rows that are left out, int64. allowed, diversity: as of a Selection.
    """
    rows: list[int] = []
    scores: list[float] = []
    places: list[int] = []
    hidden = set(excluded.tolist())
    starts, ends = (trie.row_start[generated.leaves + after].tolist() for after in (0, 1))
    for place, (start, end, score) in enumerate(zip(starts, ends, generated.scores.tolist(), strict=True)):
        own = trie.rows[start:end]
        if end - start > 1:
            own = own[np.lexsort((own, -popularity[own]))]
            if allowed is not None:
                own = own[among(own, allowed)]
        live = [row for row in own.tolist() if row not in hidden]
        rows += live
        scores += [score] * len(live)
        if diversity:
            places += [place] * len(live)
        elif len(rows) >= limit:
            break
    if not diversity:
        return RankedRows(np.array(rows[:limit], dtype=np.int64), np.array(scores[:limit]))
    kinds = trie.node_of_leaf[0][generated.leaves[places]]
    order = spread_scores(np.array(scores), kinds, diversity)[:limit]
    return RankedRows(np.array(rows, dtype=np.int64)[order], np.array(scores)[order])


def has_ties(generated: Generated, trie: Trie) -> bool:
    """Whether popularity had a say in `rank_leaves`: items share a semantic ID among those that were generated."""
    return bool((trie.row_start[generated.leaves + 1] - trie.row_start[generated.leaves] > 1).any())


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


def select_popular(popularity: Float64, available: NDArray[np.bool_], codes: Int16, selection: Selection) -> RankedRows:
    """The most popular rows of a selection. available: bool [rows]; codes: int16 [rows, 4], -1 where there are none."""
    eligible = available
    if selection.allowed is not None:
        eligible = np.zeros(len(available), dtype=np.bool_)
        eligible[selection.allowed] = available[selection.allowed]
    if not selection.diversity:
        return rank_popular(popularity, eligible, selection.excluded, selection.limit)
    every = rank_popular(popularity, eligible, selection.excluded, len(eligible))
    kinds = codes[every.rows, 0].astype(np.int64)
    kinds = np.where(kinds < 0, -1 - every.rows, kinds)  # without codes each is a kind of its own
    order = spread_weights(every.scores, kinds, selection.diversity)[: selection.limit]
    return RankedRows(every.rows[order], every.scores[order])
