"""More like one item: what lies near it by its semantic ID, and of what is equally near what is taken after it.

Nearness is content: the tokenizer gives items with like texts IDs that begin alike. So the items that share 4 levels
come first, then those that share 3, and so on; among those that share as many the model ranks, with the item as the
only history. Without a model, or while it does not answer, popularity ranks; an item that has no semantic ID yet is
near those with which it shares categories.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from anyio import CapacityLimiter, to_thread

from service.catalog.index import CatalogueIndex, category_names
from service.catalog.trie import LEVELS, Int64, Trie
from service.errors import NotFound
from service.generation.engine import GenerationRequest
from service.recommend.compose import Ranked
from service.recommend.effects import Generate
from service.recommend.filters import matching, without
from service.recommend.ranking import Float64, RankedRows, rank_leaves
from service.recommend.schemas import FallbackReason, Filters, ModelInfo, SimilarItem, SimilarReply, Strategy
from service.settings import Settings

THREADS = 2  # what looks at every item has threads of its own, as in service.recommend.service


@dataclass(frozen=True, slots=True, eq=False)
class Ring:
    """What shares exactly `levels` levels with an item, and how many of a list it may fill.

    rows, leaves: int64, rising.
    """

    levels: int
    rows: Int64
    leaves: Int64
    most: int


class SimilarItems:
    """`similar` on the event loop, which it never blocks."""

    def __init__(
        self,
        settings: Settings,
        index: Callable[[], CatalogueIndex],
        popularity: Callable[[CatalogueIndex], Float64],
        generate: Generate,
        model_info: Callable[[Ranked], ModelInfo | None],
        active_base: Callable[[], str | None],
    ) -> None:
        """generate, model_info: of the Recommender. active_base: the base in memory, None before there is one."""
        self._settings, self._index, self._popularity = settings, index, popularity
        self._generate, self._model_info, self._active_base = generate, model_info, active_base
        self._threads = CapacityLimiter(THREADS)

    async def similar(self, item_id: str, limit: int, filters: Filters) -> SimilarReply:
        """Up to `limit` available items, never the item itself. Raises NotFound for an unknown or deleted item.

        An item that is not available has similar ones all the same: they are what to offer in its place.
        """
        due = time.monotonic() + self._settings.request_deadline.total_seconds()
        index = self._index()
        row = index.row_of.get(item_id)
        if row is None or index.items[row].deleted:
            raise NotFound("there is no such item, or it has been deleted; PUT /v1/items creates it")
        base_id = self._active_base()
        ranked = None
        if base_id is None or base_id != index.base_id:
            reason = FallbackReason.NO_MODEL
        elif not index.coded[row]:
            reason = FallbackReason.HISTORY_UNKNOWN
        else:
            prepare = partial(rings, index, row, limit, filters)
            found = await to_thread.run_sync(prepare, limiter=self._threads)
            ranked, reason = await self._by_model(index, row, limit, found, base_id, due)
        if ranked is None:
            popular = partial(nearest_popular, index, row, limit, filters, self._popularity(index))
            rows = await to_thread.run_sync(popular, limiter=self._threads)
            ranked = Ranked(rows, Strategy.POPULAR, reason)
        return self._reply(index, row, limit, ranked)

    async def _by_model(
        self, index: CatalogueIndex, row: int, limit: int, found: list[Ring], base_id: str, due: float
    ) -> tuple[Ranked | None, FallbackReason]:
        history, trie = index.codes[[row]], index.trie
        nothing = np.empty(0, dtype=np.int64)
        # Every search of one width, so that they share a batch.
        asked = [GenerationRequest(history, limit, nothing, ring.leaves) for ring in found]
        answers = await asyncio.gather(*(self._generate(one, index, base_id, due) for one in asked))
        parts, versions = [], set()
        for ring, (answer, reason) in zip(found, answers, strict=True):
            if answer is None:
                return None, reason
            versions.add((answer.base_id, answer.adapter_version))
            parts.append(
                rank_leaves(answer.generated, trie, self._popularity(index), nothing, ring.most, allowed=ring.rows)
            )
        if not versions:
            return Ranked(RankedRows(nothing, np.empty(0)), Strategy.POPULAR, None), FallbackReason.NO_MODEL
        if len(versions) > 1:  # the model was swapped in between: scores of two do not compare
            return None, FallbackReason.NO_MODEL
        rows = RankedRows(np.concatenate([p.rows for p in parts]), np.concatenate([p.scores for p in parts]))
        return Ranked.by_model(rows, *versions.pop()), FallbackReason.NO_MODEL

    def _reply(self, index: CatalogueIndex, row: int, limit: int, ranked: Ranked) -> SimilarReply:
        rows = ranked.rows.rows
        levels, own_names = shared_levels(index, row, rows), category_names(index.items[row])
        categories = [len(own_names & category_names(index.items[other])) for other in rows.tolist()]
        items = [
            SimilarItem(
                item_id=index.items[own].item_id,
                rank=rank,
                score=score,
                title=index.items[own].title,
                shared_levels=shared,
                shared_categories=common,
            )
            for rank, (own, score, shared, common) in enumerate(
                zip(rows.tolist(), ranked.rows.scores.tolist(), levels.tolist(), categories, strict=True), 1
            )
        ]
        return SimilarReply(
            item_id=index.items[row].item_id,
            items=items,
            strategy=ranked.strategy,
            fallback_reason=ranked.reason,
            model=self._model_info(ranked),
            missing=limit - len(items),
        )


def rings(index: CatalogueIndex, row: int, limit: int, filters: Filters) -> list[Ring]:
    """From the nearest outwards, as many as a list of `limit` needs; none is empty. The item itself is in none."""
    allowed = matching(index, filters) if filters.given else None
    found: list[Ring] = []
    inner, left = np.array([row], dtype=np.int64), limit
    for levels, rows in subtrees(index.trie, index.codes[row].tolist()):
        own = without(rows, inner)
        inner = np.concatenate([inner, own])
        if allowed is not None:
            own = np.intersect1d(own, allowed, assume_unique=True)
        if len(own):
            found.append(Ring(levels, np.sort(own), index.trie.leaves_of(own), left))
            left -= len(own)
        if left <= 0:
            break
    return found


def subtrees(trie: Trie, codes: list[int]) -> Iterator[tuple[int, Int64]]:
    """Levels from 4 to 0, and the rows whose semantic IDs begin with as many of these codes, where there are any."""
    for levels in range(LEVELS, -1, -1):
        first, last = trie.leaves_below(codes[:levels])
        if first < last:
            yield levels, trie.rows[trie.row_start[first] : trie.row_start[last]].astype(np.int64)


def nearest_popular(index: CatalogueIndex, row: int, limit: int, filters: Filters, popularity: Float64) -> RankedRows:
    """By shared levels, or by shared categories for an item without codes, and then by popularity (float64 [rows])."""
    rows = matching(index, filters) if filters.given else np.flatnonzero(index.available)
    rows = rows[rows != row]
    near = shared_levels(index, row, rows) if index.coded[row] else shared_categories(index, row)[rows]
    order = np.lexsort((rows, -popularity[rows], -near))[:limit]
    return RankedRows(rows[order], popularity[rows[order]])


def shared_levels(index: CatalogueIndex, row: int, rows: Int64) -> Int64:
    """int64 [n]: how many codes from the first one each of `rows` shares with `row`; 0 for what has none."""
    same = (index.codes[rows] == index.codes[row]) & (index.codes[rows] >= 0)
    levels: Int64 = np.cumprod(same, axis=1).sum(axis=1)
    return levels


def shared_categories(index: CatalogueIndex, row: int) -> Int64:
    """int64 [rows]: how many of the categories of `row` each has."""
    counts = np.zeros(len(index.items), dtype=np.int64)
    for name in category_names(index.items[row]):
        counts[index.rows_by_category.get(name, counts[:0])] += 1
    return counts
