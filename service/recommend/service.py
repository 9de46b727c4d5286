"""The recommendation: history -> exclusions -> search, or the next rung of the ladder with the reason in the reply."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import numpy as np
import structlog
from starlette.concurrency import run_in_threadpool

from service.catalog.index import CatalogueIndex
from service.catalog.trie import Int64
from service.errors import StoreUnavailable, Unavailable
from service.generation.batching import Answer, Batcher
from service.generation.engine import GenerationRequest
from service.kit.clock import Clock
from service.kit.ids import uuid7
from service.recommend import explain
from service.recommend.answer_cache import AnswerCache, KeptAnswer
from service.recommend.history import UserPast
from service.recommend.ranking import Float64, RankedRows, rank_leaves, rank_popular
from service.recommend.schemas import (
    FallbackReason,
    ModelInfo,
    RecommendationReply,
    RecommendationRequest,
    RecommendedItem,
    Strategy,
)
from service.settings import Settings

log = structlog.get_logger(__name__)

NOBODY = UserPast((), ())
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class _Ranked:
    """base_id and adapter_version: of the model that ranked the rows; no base_id when none did."""

    rows: RankedRows
    strategy: Strategy
    reason: FallbackReason | None
    base_id: str | None = None
    adapter_version: str | None = None

    @classmethod
    def by_model(cls, rows: RankedRows, base_id: str, adapter_version: str | None) -> "_Ranked":
        if adapter_version is None:
            return cls(rows, Strategy.BASE, FallbackReason.NO_ADAPTER, base_id)
        return cls(rows, Strategy.PERSONALISED, None, base_id, adapter_version)


class Recommender:
    """Answers as long as the process lives: nothing but a wrong request makes it raise.

    It runs on the event loop and never blocks it: the store and the model have threads of their own, which do what
    waits at one time together (docs/decisions/0012).
    """

    def __init__(
        self,
        *,
        settings: Settings,
        clock: Clock,
        index: Callable[[], CatalogueIndex],
        popularity: Callable[[CatalogueIndex], Float64],
        batcher: Batcher,
        read_past: Callable[[str], Future[UserPast]],
        record: Callable[[Mapping[str, Any]], Future[None]],
        active_base: Callable[[], str | None],
        trained_through: Callable[[str, str | None], datetime | None],
        on_reply: Callable[[Strategy, FallbackReason | None], None] = lambda strategy, reason: None,
        answers: AnswerCache | None = None,
    ) -> None:
        """read_past: of a user. record: stores a row of `recommendations`; committed when its future has a result.

        active_base: the base in memory, None before there is one. trained_through: of (base, adapter version).
        answers: kept for the same question, a moment long.
        """
        self._settings = settings
        self._deadline_s = settings.request_deadline.total_seconds()
        self._clock = clock
        self._index = index
        self._popularity = popularity
        self._batcher = batcher
        self._read_past = read_past
        self._record = record
        self._active_base = active_base
        self._trained_through = trained_through
        self._on_reply = on_reply
        self._answers = answers

    async def recommend(self, request: RecommendationRequest) -> RecommendationReply:
        """The reply, stored under its recommendation_id (when the store answers).

        When this is cancelled, what waits for the store or the model is dropped.
        """
        due = time.monotonic() + self._deadline_s
        index = self._index()  # one snapshot from here to the reply
        with self._batcher.coming():
            past, store_failed = await self._past(request, due)
            latest = past.latest if request.history is None else tuple(request.history)
            question, kept = await self._kept(request, past, latest, index, store_failed, due)
        history = index.rows(latest)
        prompt = index.with_codes(history)[-self._settings.history_items :]
        if (ranked := kept) is None:
            excluded = self._excluded(request, past, history, index)
            ranked = await self._rank(request.limit, index, latest, prompt, excluded, store_failed, due)
            self._keep(question, index, ranked)
        reply = self._reply(request, index, ranked, prompt)
        if not store_failed:
            await self._store(request, index, reply, prompt)
        self._on_reply(reply.strategy, reply.fallback_reason)
        return reply

    async def _past(self, request: RecommendationRequest, due: float) -> tuple[UserPast, bool]:
        """The stored past, and whether the store failed. With a history given only what is seen is wanted of it."""
        if request.user_id is None or (request.history is not None and request.include_seen):
            return NOBODY, False
        try:
            return await _by(due, asyncio.wrap_future(self._read_past(request.user_id))), False
        except (StoreUnavailable, Unavailable, TimeoutError) as error:
            log.warning("history_unavailable", error=str(error) or type(error).__name__)
            return NOBODY, True

    async def _kept(
        self,
        request: RecommendationRequest,
        past: UserPast,
        latest: tuple[str, ...],
        index: CatalogueIndex,
        store_failed: bool,
        due: float,
    ) -> tuple[bytes | None, _Ranked | None]:
        """The question to keep an answer under, and what is kept for it. Nothing for a past that is not known."""
        if self._answers is None or store_failed or not latest:
            return None, None
        question = self._answers.question(request, past, latest, index)
        try:
            found = await _by(due, self._answers.find(question))
        except TimeoutError:
            return question, None
        if found is None or found.base_id != index.base_id:
            return question, None
        rows = index.rows(found.item_ids)
        if len(rows) != len(found.item_ids):
            return question, None
        return question, _Ranked.by_model(
            RankedRows(rows, np.array(found.scores)), found.base_id, found.adapter_version
        )

    def _keep(self, question: bytes | None, index: CatalogueIndex, ranked: _Ranked) -> None:
        if self._answers is None or question is None or ranked.base_id is None:
            return
        item_ids = tuple(index.items[row].item_id for row in ranked.rows.rows.tolist())
        scores = tuple(ranked.rows.scores.tolist())
        self._answers.keep(question, KeptAnswer(item_ids, scores, ranked.base_id, ranked.adapter_version))

    def _excluded(self, request: RecommendationRequest, past: UserPast, history: Int64, index: CatalogueIndex) -> Int64:
        """Rows that must not be recommended, in any order, some more than once. history: rows of the latest items."""
        parts = [index.rows(request.exclude_item_ids)]
        if not request.include_seen:
            parts += [index.rows(past.seen), history]
        if request.filters.category is not None:
            wanted = np.zeros(len(index.items), dtype=np.bool_)
            wanted[index.rows_by_category.get(request.filters.category.casefold(), np.empty(0, np.int64))] = True
            parts.append(np.flatnonzero(~wanted))
        return np.concatenate(parts)

    async def _rank(
        self,
        limit: int,
        index: CatalogueIndex,
        latest: tuple[str, ...],
        prompt: Int64,
        excluded: Int64,
        store_failed: bool,
        due: float,
    ) -> _Ranked:
        answer: Answer | None = None
        base_id = self._active_base()
        if base_id is None or base_id != index.base_id:
            reason = FallbackReason.NO_MODEL
        elif not latest:
            reason = FallbackReason.STORE_UNAVAILABLE if store_failed else FallbackReason.NO_HISTORY
        elif not len(prompt):
            reason = FallbackReason.HISTORY_UNKNOWN
        else:
            answer, reason = await self._generate(limit, index, prompt, excluded, base_id, due)
        if answer is None:
            rows = await run_in_threadpool(self._rank_popular, index, excluded, limit)
            return _Ranked(rows, Strategy.POPULAR, reason)
        rows = rank_leaves(answer.generated, index.trie, self._popularity(index), excluded, limit)
        return _Ranked.by_model(rows, answer.base_id, answer.adapter_version)

    def _rank_popular(self, index: CatalogueIndex, excluded: Int64, limit: int) -> RankedRows:
        """Looks at every item, so it is no work for the event loop."""
        return rank_popular(self._popularity(index), index.available, excluded, limit)

    async def _generate(
        self, limit: int, index: CatalogueIndex, prompt: Int64, excluded: Int64, base_id: str, due: float
    ) -> tuple[Answer | None, FallbackReason]:
        """The model's answer, or None and why there is none."""
        trie = index.trie
        request = GenerationRequest(index.codes[prompt], limit, trie.excluded_leaves(excluded))
        try:
            future = self._batcher.ask(request, trie, base_id, due)
        except Unavailable:
            return None, FallbackReason.OVERLOADED
        try:
            return await _by(due, asyncio.wrap_future(future)), FallbackReason.NO_MODEL
        except TimeoutError:
            return None, FallbackReason.DEADLINE
        except Unavailable:
            return None, FallbackReason.NO_MODEL
        except Exception:  # the engine failed: the user still gets a list, and the log the traceback (see batching)
            return None, FallbackReason.ENGINE_ERROR

    def _reply(
        self, request: RecommendationRequest, index: CatalogueIndex, ranked: _Ranked, prompt: Int64
    ) -> RecommendationReply:
        items = []
        for rank, (row, score) in enumerate(
            zip(ranked.rows.rows.tolist(), ranked.rows.scores.tolist(), strict=True), 1
        ):
            reasons = None
            if request.explain:
                popular = ranked.strategy is Strategy.POPULAR
                reasons = [explain.POPULAR] if popular else explain.reasons(index, row, prompt)
            item = index.items[row]
            items.append(
                RecommendedItem(item_id=item.item_id, rank=rank, score=score, title=item.title, reasons=reasons)
            )
        model = None
        if ranked.base_id is not None:
            base_id, version = ranked.base_id, ranked.adapter_version
            trained_through = self._trained_through(base_id, version)
            model = ModelInfo(adapter_version=version, base=base_id, trained_through=trained_through)
        return RecommendationReply(
            recommendation_id=uuid7(),
            items=items,
            strategy=ranked.strategy,
            fallback_reason=ranked.reason,
            model=model,
        )

    async def _store(
        self, request: RecommendationRequest, index: CatalogueIndex, reply: RecommendationReply, prompt: Int64
    ) -> None:
        row = {
            "recommendation_id": reply.recommendation_id,
            "user_id": request.user_id,
            "created_at": self._clock(),
            "strategy": reply.strategy.value,
            "fallback_reason": reply.fallback_reason,
            "base_id": reply.model.base if reply.model else None,
            "adapter_version": reply.model.adapter_version if reply.model else None,
            "catalog_revision": index.revision,
            "history": [index.items[row].item_id for row in prompt.tolist()],
            "items": [[item.item_id, item.score] for item in reply.items],
        }
        try:  # a store that hangs may have been found out by nobody yet: the past can come from a cache
            await _by(time.monotonic() + self._deadline_s, asyncio.wrap_future(self._record(row)))
        except (StoreUnavailable, Unavailable, TimeoutError) as error:  # the user's list matters more than its record
            log.warning("recommendation_not_stored", error=str(error) or type(error).__name__)


async def _by(due: float, awaited: Awaitable[T]) -> T:
    """What is awaited; it is cancelled with TimeoutError when `due` (monotonic) passes first."""
    async with asyncio.timeout(due - time.monotonic()):
        return await awaited
