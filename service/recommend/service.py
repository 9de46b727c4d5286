"""The recommendation: history -> exclusions -> search, or the next rung of the ladder with the reason in the reply."""

from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import structlog

from service.catalog.index import CatalogueIndex
from service.catalog.trie import Int64
from service.errors import StoreUnavailable, Unavailable
from service.generation.batching import Answer, Batcher
from service.generation.engine import GenerationRequest
from service.kit.clock import Clock
from service.kit.db import Database
from service.kit.ids import uuid7
from service.recommend import explain, repository
from service.recommend.history import UserPast, load_past
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


@dataclass(frozen=True, slots=True, eq=False)
class _Ranked:
    rows: RankedRows
    strategy: Strategy
    reason: FallbackReason | None
    answer: Answer | None = None


class Recommender:
    """Answers as long as the process lives: nothing but a wrong request makes it raise."""

    def __init__(
        self,
        *,
        database: Database,
        settings: Settings,
        clock: Clock,
        index: Callable[[], CatalogueIndex],
        popularity: Callable[[CatalogueIndex], Float64],
        batcher: Batcher,
        active_base: Callable[[], str | None],
        trained_through: Callable[[str, str | None], datetime | None],
        on_reply: Callable[[Strategy, FallbackReason | None], None] = lambda strategy, reason: None,
    ) -> None:
        """active_base: the base in memory, None before there is one. trained_through: of (base, adapter version)."""
        self._database = database
        self._settings = settings
        self._clock = clock
        self._index = index
        self._popularity = popularity
        self._batcher = batcher
        self._active_base = active_base
        self._trained_through = trained_through
        self._on_reply = on_reply

    def recommend(self, request: RecommendationRequest) -> RecommendationReply:
        """The reply, stored under its recommendation_id (when the store answers)."""
        index = self._index()  # one snapshot from here to the reply
        past, store_failed = self._past(request)
        latest = past.latest if request.history is None else tuple(request.history)
        history = index.rows(latest)
        excluded = self._excluded(request, past, latest, index)
        prompt = index.with_codes(history)[-self._settings.history_items :]
        ranked = self._rank(request.limit, index, latest, prompt, excluded, store_failed)
        reply = self._reply(request, index, ranked, prompt)
        if not store_failed:
            self._store(request, index, reply, prompt)
        self._on_reply(reply.strategy, reply.fallback_reason)
        return reply

    def _past(self, request: RecommendationRequest) -> tuple[UserPast, bool]:
        """The stored past, and whether the store failed. With a history given only what is seen is wanted of it."""
        if request.user_id is None or (request.history is not None and request.include_seen):
            return NOBODY, False
        try:
            with self._database.read() as connection:
                return load_past(
                    connection,
                    request.user_id,
                    history_items=self._settings.history_items,
                    seen_items=self._settings.seen_items,
                    ignored_types=self._settings.ignored_event_types,
                ), False
        except StoreUnavailable as error:
            log.warning("history_unavailable", error=error.detail)
            return NOBODY, True

    def _excluded(
        self, request: RecommendationRequest, past: UserPast, latest: tuple[str, ...], index: CatalogueIndex
    ) -> Int64:
        """Rows that must not be recommended, unique, rising."""
        parts = [index.rows(request.exclude_item_ids)]
        if not request.include_seen:
            parts += [index.rows(past.seen), index.rows(latest)]
        if request.filters.category is not None:
            wanted = np.zeros(len(index.items), dtype=np.bool_)
            wanted[index.rows_by_category.get(request.filters.category.casefold(), np.empty(0, np.int64))] = True
            parts.append(np.flatnonzero(~wanted))
        return np.unique(np.concatenate(parts))

    def _rank(
        self,
        limit: int,
        index: CatalogueIndex,
        latest: tuple[str, ...],
        prompt: Int64,
        excluded: Int64,
        store_failed: bool,
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
            answer, reason = self._generate(limit, index, prompt, excluded, base_id)
        popularity = self._popularity(index)
        if answer is None:
            rows = rank_popular(popularity, index.available, excluded, limit)
            return _Ranked(rows, Strategy.POPULAR, reason)
        rows = rank_leaves(answer.generated, index.trie, popularity, excluded, limit)
        if answer.adapter_version is None:
            return _Ranked(rows, Strategy.BASE, FallbackReason.NO_ADAPTER, answer)
        return _Ranked(rows, Strategy.PERSONALISED, None, answer)

    def _generate(
        self, limit: int, index: CatalogueIndex, prompt: Int64, excluded: Int64, base_id: str
    ) -> tuple[Answer | None, FallbackReason]:
        """The model's answer, or None and why there is none."""
        trie = index.trie
        try:
            future = self._batcher.ask(
                GenerationRequest(index.codes[prompt], limit, trie.excluded_leaves(excluded)), trie, base_id
            )
        except Unavailable:
            return None, FallbackReason.OVERLOADED
        try:
            return future.result(self._settings.request_deadline.total_seconds()), FallbackReason.NO_MODEL
        except FutureTimeout:
            future.cancel()
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
        if ranked.answer is not None:
            base_id, version = ranked.answer.base_id, ranked.answer.adapter_version
            trained_through = self._trained_through(base_id, version)
            model = ModelInfo(adapter_version=version, base=base_id, trained_through=trained_through)
        return RecommendationReply(
            recommendation_id=uuid7(),
            items=items,
            strategy=ranked.strategy,
            fallback_reason=ranked.reason,
            model=model,
        )

    def _store(
        self, request: RecommendationRequest, index: CatalogueIndex, reply: RecommendationReply, prompt: Int64
    ) -> None:
        try:
            with self._database.write() as connection:
                repository.insert(
                    connection,
                    {
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
                    },
                )
        except StoreUnavailable as error:  # the user's list matters more than its record
            log.warning("recommendation_not_stored", error=error.detail)
