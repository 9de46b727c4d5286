"""A recommendation's way, from history to stored reply; over 300 lines, since each step hands on what it found.

History -> exclusions -> search, or the next rung of the ladder with the reason in the reply.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import numpy as np
import structlog
from anyio import CapacityLimiter, to_thread

from service.catalog.index import CatalogueIndex
from service.catalog.trie import Int64
from service.errors import StoreUnavailable, Unavailable
from service.generation.batching import Answer, Batcher
from service.generation.engine import GenerationRequest
from service.kit.clock import Clock
from service.kit.ids import uuid7
from service.recommend import explain
from service.recommend.answer_cache import AnswerCache, KeptAnswer, Question
from service.recommend.basis import RecordedSettings, SettingsIds, asked, batch_basis, past_basis
from service.recommend.compose import Ranked, compose, parts_of
from service.recommend.diversity import penalty
from service.recommend.effects import LeaveOneOut
from service.recommend.history import UserPast
from service.recommend.ranking import Float64, RankedRows, Selection, has_ties, rank_leaves, select_popular
from service.recommend.record import Recorded
from service.recommend.schemas import (
    FallbackReason,
    ModelInfo,
    RecommendationReply,
    RecommendationRequest,
    RecommendedItem,
    Strategy,
)
from service.settings import FilterMode, Settings
from service.telemetry import TRIAL_REQUESTS
from service.trials.live import LiveTrial
from service.trials.shadow import ShadowJob
from service.trials.states import Arm

log = structlog.get_logger(__name__)

NOBODY = UserPast((), ())
NONE = np.empty(0, dtype=np.int64)
LARGE = 50_000  # rows of a choice: more are turned into leaves beside the event loop
SHADOW_AFTER_S = 0.02  # by then the reply is on its way
POPULAR_THREADS = 4  # their own: those of other routes may all be waiting for a store that is away
T = TypeVar("T")


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
        popularity_basis: Callable[[Float64], tuple[int, int] | None] = lambda popularity: None,
        interaction: Callable[[], float] = lambda: 0.0,
        trial: Callable[[], LiveTrial | None] = lambda: None,
        shadow: Callable[[ShadowJob], None] = lambda job: None,
    ) -> None:
        """read_past: of a user. record: stores a row of `recommendations`; committed when its future has a result.

        active_base: the base in memory, None before there is one. trained_through: of (base, adapter version).
        answers: kept for the same question, a moment long. popularity_basis: of what `popularity` gave
        (PopularityFollower.basis). interaction: what one of now weighs in the popularity.
        trial: whose candidate is in memory, None nearly always. shadow: takes what its candidate is to rank after the
        reply; returns at once.
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
        self._popularity_basis = popularity_basis
        self._settings_ids = SettingsIds(settings)
        self._interaction = interaction
        self._left_out = LeaveOneOut(self.generate, settings.explain_timeout)
        self._trial, self._shadow = trial, shadow
        self._popular_threads = CapacityLimiter(POPULAR_THREADS)
        self._recorded = Recorded(self._deadline_s)

    async def recommend(
        self, request: RecommendationRequest, recommendation_id: str | None = None, *, record: bool = True
    ) -> RecommendationReply:
        """The reply, stored under its recommendation_id (when the store answers). recommendation_id: a new one if None.

        record False: for who only looks; it is neither stored nor counted, and its id names nothing.
        When this is cancelled, what waits for the store or the model is dropped.
        """
        due = time.monotonic() + self._deadline_s
        request = request.resolved(self._settings.filter_mode, self._settings.exploration_share)
        recommendation_id = recommendation_id or uuid7()
        index = self._index()  # one snapshot from here to the reply
        trial = self._trial()  # likewise
        arm = None if trial is None else trial.arm(request.user_id)
        candidate = trial if arm is Arm.CANARY else None
        with self._batcher.coming():
            past, store_failed = await self._past(request, due)
            latest = past.latest if request.history is None else tuple(request.history)
            question, kept = await self._kept(request, past, latest, index, store_failed, candidate, due)
        history = index.rows(latest)
        prompt = index.with_codes(history)[-self._settings.history_items :]
        if kept is None or trial is not None:
            excluded = self._excluded(request, past, history, index)
        if (ranked := kept) is None:
            rank = partial(self._rank, index, latest, prompt, store_failed, candidate is not None, due)
            if request.is_plain:
                ranked = await rank(Selection(request.limit, excluded))
            else:
                ranked = await self._composed(request, recommendation_id, index, excluded, rank)
        reasons = await self._reasons(index, ranked, prompt, candidate is not None, due) if request.explain else None
        reply = self._reply(request, recommendation_id, index, ranked, reasons)
        if request.history is not None and len(index.with_codes(history)) < len(latest):
            reply.unknown_history = _unknown(latest, index)
        if not record:
            return reply
        if kept is None:
            self._keep(question, index, ranked, recommendation_id)
        if not store_failed:
            await self._store(request, index, reply, prompt, past, ranked, arm)
        self._on_reply(reply.strategy, reply.fallback_reason)
        if arm is not None:
            TRIAL_REQUESTS.labels(arm.value).inc()
        elif trial is not None and ranked.base_id == trial.base_id and request.is_plain and not store_failed:
            if trial.shadows(request.user_id, reply.recommendation_id):
                job = ShadowJob(reply.recommendation_id, index, prompt, excluded, request.limit)
                asyncio.get_running_loop().call_later(SHADOW_AFTER_S, self._shadow, job)
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
        candidate: LiveTrial | None,
        due: float,
    ) -> tuple[Question | None, Ranked | None]:
        """The question to keep an answer under, and what is kept for it. Nothing for a past that is not known."""
        if self._answers is None or store_failed or not latest or request.exploration:
            return None, None
        question = self._answers.question(request, past, latest, index)
        model = None if candidate is None else (candidate.base_id, candidate.adapter_version)
        try:
            found = await _by(due, self._answers.find(question, model))
        except TimeoutError:
            return question, None
        if found is None or found.base_id != index.base_id:
            return question, None
        rows = index.rows(found.item_ids)
        if len(rows) != len(found.item_ids):
            return question, None
        return question, Ranked.by_model(
            RankedRows(rows, np.array(found.scores)),
            found.base_id,
            found.adapter_version,
            {**found.computed, "copied_from": found.recommendation_id},
            found.settings_id,
        )

    def _keep(self, question: Question | None, index: CatalogueIndex, ranked: Ranked, recommendation_id: str) -> None:
        if self._answers is None or question is None or ranked.base_id is None or ranked.outside:
            return
        settings_id = ranked.settings.id if isinstance(ranked.settings, RecordedSettings) else None
        item_ids = tuple(index.items[row].item_id for row in ranked.rows.rows.tolist())
        scores = tuple(ranked.rows.scores.tolist())
        model = ranked.base_id, ranked.adapter_version
        answer = KeptAnswer(item_ids, scores, *model, recommendation_id, ranked.computed, settings_id)
        self._answers.keep(question, answer)

    def _excluded(self, request: RecommendationRequest, past: UserPast, history: Int64, index: CatalogueIndex) -> Int64:
        """Rows that must not be recommended, in any order, some more than once. history: rows of the latest items."""
        parts = [index.rows(request.exclude_item_ids)]
        if not request.include_seen:
            parts += [index.rows(past.seen), history]
        return np.concatenate(parts)

    async def _composed(
        self,
        request: RecommendationRequest,
        recommendation_id: str,
        index: CatalogueIndex,
        excluded: Int64,
        rank: Callable[..., Awaitable[Ranked]],
    ) -> Ranked:
        popularity, interaction = self._popularity(index), self._interaction()
        what = (request, recommendation_id, index, excluded, popularity, interaction)
        prepare = partial(parts_of, *what, self._settings.exploration_events)
        looks = request.filters.given or request.exploration  # at more than a few rows
        parts = await to_thread.run_sync(prepare, limiter=self._popular_threads) if looks else prepare()
        by_model, by_popularity = partial(rank, composed=True), partial(self._by_popularity, index)
        found = await compose(parts, by_model, by_popularity, popularity, recommendation_id)
        if not request.exploration:
            return found
        basis = self._popular_basis(popularity) | {"interaction": interaction}
        return replace(found, computed={**found.computed, **basis})

    async def _rank(
        self,
        index: CatalogueIndex,
        latest: tuple[str, ...],
        prompt: Int64,
        store_failed: bool,
        candidate: bool,
        due: float,
        wanted: Selection,
        *,
        composed: bool = False,
    ) -> Ranked:
        """candidate: that of a trial ranks. composed: it is one of several searches of a list."""
        answer: Answer | None = None
        base_id = self._active_base()
        if base_id is None or base_id != index.base_id:
            reason = FallbackReason.NO_MODEL
        elif not latest:
            reason = FallbackReason.STORE_UNAVAILABLE if store_failed else FallbackReason.NO_HISTORY
        elif not len(prompt):
            reason = FallbackReason.HISTORY_UNKNOWN
        else:
            request = await self._question(index, prompt, wanted)
            answer, reason = await self.generate(request, index, base_id, due, candidate=candidate)
        if answer is None:
            return await self._by_popularity(index, wanted, reason)
        popularity, batch = self._popularity(index), answer.generated.batch
        own = wanted.excluded, wanted.limit, wanted.allowed, wanted.diversity
        rows = rank_leaves(answer.generated, index.trie, popularity, *own)
        computed = batch_basis(batch, request if composed else None)
        if has_ties(answer.generated, index.trie):
            computed |= self._popular_basis(popularity)
        settings = self._settings_ids.of(batch)
        return Ranked.by_model(rows, answer.base_id, answer.adapter_version, computed, settings)

    async def _by_popularity(self, index: CatalogueIndex, wanted: Selection, reason: FallbackReason) -> Ranked:
        """Looks at every item, so it is no work for the event loop."""
        popularity = self._popularity(index)
        select = partial(select_popular, popularity, index.available, index.codes, wanted)
        rows = await to_thread.run_sync(select, limiter=self._popular_threads)
        computed, settings = self._popular_basis(popularity), self._settings_ids.of(None)
        if wanted.diversity and index.base_id is not None:  # kinds are of its codes
            computed["codes"] = index.base_id
        return Ranked(rows, Strategy.POPULAR, reason, computed=computed, settings=settings)

    def _popular_basis(self, popularity: Float64) -> dict[str, Any]:
        basis = self._popularity_basis(popularity)
        return {} if basis is None else {"popular": list(basis)}

    async def _question(self, index: CatalogueIndex, prompt: Int64, wanted: Selection) -> GenerationRequest:
        trie, history = index.trie, index.codes[prompt]
        limit, lost = wanted.limit, 0.0
        if wanted.diversity:  # more than are wanted, so that kinds further down are met
            limit, lost = max(self._settings.beams, 2 * limit), penalty(wanted.diversity)
        if wanted.allowed is None:
            return GenerationRequest(history, limit, trie.excluded_leaves(wanted.excluded), None, lost)
        leaves_of = partial(trie.leaves_of, wanted.allowed)
        few = len(wanted.allowed) <= LARGE
        leaves = leaves_of() if few else await to_thread.run_sync(leaves_of, limiter=self._popular_threads)
        return GenerationRequest(history, limit, NONE, leaves, lost)

    async def generate(
        self, request: GenerationRequest, index: CatalogueIndex, base_id: str, due: float, *, candidate: bool = False
    ) -> tuple[Answer | None, FallbackReason]:
        """The model's answer, or that of a trial's candidate; or None and why there is none."""
        try:
            future = self._batcher.ask(request, index.trie, base_id, due, candidate=candidate)
        except Unavailable:
            return None, FallbackReason.OVERLOADED
        try:
            return await _by(due, asyncio.wrap_future(future)), FallbackReason.NO_MODEL
        except TimeoutError:
            return None, FallbackReason.DEADLINE
        except Unavailable:
            return None, FallbackReason.NO_MODEL
        except Exception as error:  # the user still gets a list, and the log the traceback once a batch (see batching)
            log.warning("recommendation_not_generated", error=type(error).__name__)  # with this request's id
            return None, FallbackReason.ENGINE_ERROR

    async def _reasons(
        self, index: CatalogueIndex, ranked: Ranked, prompt: Int64, candidate: bool, due: float
    ) -> list[list[str]]:
        """Of each item in rank order."""
        rows = ranked.rows.rows.tolist()
        if ranked.strategy is Strategy.POPULAR:
            return [[explain.POPULAR] for _ in rows]
        near = [explain.reasons(index, row, prompt) for row in rows]
        effects = await self._left_out.measure(index, ranked, prompt, due, candidate=candidate)
        if effects is None:
            return near
        return [effects.sentences(index, place) + own for place, own in enumerate(near)]

    def _reply(
        self,
        request: RecommendationRequest,
        recommendation_id: str,
        index: CatalogueIndex,
        ranked: Ranked,
        reasons: list[list[str]] | None,
    ) -> RecommendationReply:
        items = []
        filtered, explored = request.filters.given, bool(request.exploration)
        for place, (row, score) in enumerate(zip(ranked.rows.rows.tolist(), ranked.rows.scores.tolist(), strict=True)):
            item = index.items[row]
            own = None if reasons is None else reasons[place]
            shown = RecommendedItem(item_id=item.item_id, rank=place + 1, score=score, title=item.title, reasons=own)
            if filtered:
                shown.filtered = row not in ranked.outside
            if explored:
                shown.exploration = row in ranked.cold
            items.append(shown)
        return RecommendationReply(
            recommendation_id=recommendation_id,
            items=items,
            strategy=ranked.strategy,
            fallback_reason=ranked.reason,
            model=self.model_info(ranked),
            filters_applied=(FilterMode.RELAXED if ranked.outside else FilterMode.STRICT) if filtered else None,
            missing=request.limit - len(items),
        )

    def model_info(self, ranked: Ranked) -> ModelInfo | None:
        """Of the model that ranked; None when none did."""
        if ranked.base_id is None:
            return None
        trained_through = self._trained_through(ranked.base_id, ranked.adapter_version)
        return ModelInfo(adapter_version=ranked.adapter_version, base=ranked.base_id, trained_through=trained_through)

    async def _store(
        self,
        request: RecommendationRequest,
        index: CatalogueIndex,
        reply: RecommendationReply,
        prompt: Int64,
        past: UserPast,
        ranked: Ranked,
        arm: Arm | None,
    ) -> None:
        history = [index.items[row].item_id for row in prompt.tolist()]
        settings = ranked.settings
        row = {
            "recommendation_id": reply.recommendation_id,
            "user_id": request.user_id,
            "created_at": self._clock(),
            "strategy": reply.strategy.value,
            "fallback_reason": reply.fallback_reason,
            "base_id": reply.model.base if reply.model else None,
            "adapter_version": reply.model.adapter_version if reply.model else None,
            "catalog_revision": index.revision,
            "history": history,
            "items": [[item.item_id, item.score] for item in reply.items],
            "request": asked(request, history),
            "computed": past_basis(past) | dict(ranked.computed),
            **({"settings_id": settings} if isinstance(settings, str) else {"settings": settings}),
            "arm": None if arm is None else arm.value,
        }
        try:
            await self._recorded.wait(asyncio.wrap_future(self._record(row)))
        except (StoreUnavailable, Unavailable, TimeoutError) as error:  # the user's list matters more than its record
            log.warning("recommendation_not_stored", error=str(error) or type(error).__name__)


def _unknown(latest: Iterable[str], index: CatalogueIndex) -> list[str]:
    """Those that are not in the catalogue, or not encoded yet, each once."""
    row_of = index.row_of
    return [one for one in dict.fromkeys(latest) if one not in row_of or not index.coded[row_of[one]]]


async def _by(due: float, awaited: Awaitable[T]) -> T:
    """What is awaited; it is cancelled with TimeoutError when `due` (monotonic) passes first."""
    async with asyncio.timeout(due - time.monotonic()):
        return await awaited
