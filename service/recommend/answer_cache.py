"""What was generated for exactly the same question a moment ago, shared by the replicas through Redis.

The key holds everything that shapes the answer (the past itself, not only whose it is; the base, the adapter, the
catalogue's revision), so there is nothing to invalidate: whatever changes makes another key.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import orjson

from service.catalog.index import CatalogueIndex
from service.errors import Unavailable
from service.kit.grouped import Grouped
from service.kit.redis_link import RedisAway, RedisLink
from service.recommend.history import UserPast
from service.recommend.schemas import RecommendationRequest
from service.settings import Settings
from service.telemetry import CACHE

if TYPE_CHECKING:
    from redis import Redis

TOGETHER = 64
QUEUED = 16 * TOGETHER


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """Items in rank order with their scores, and the model that ranked them.

    recommendation_id: of the reply that it was made for; computed, settings_id: as that one's row has them.
    """

    item_ids: tuple[str, ...]
    scores: tuple[float, ...]
    base_id: str
    adapter_version: str | None
    recommendation_id: str = ""
    computed: Mapping[str, Any] = field(default_factory=dict)
    settings_id: str | None = None


class AnswerCache:
    """`find` and `keep` on the event loop, which they never block; start() and stop() once each.

    Only what a model has ranked is kept, never a fallback.
    """

    def __init__(
        self,
        link: RedisLink,
        settings: Settings,
        lifetime: timedelta,
        serving: Callable[[], tuple[str | None, str | None]],
    ) -> None:
        """serving: base and adapter version in memory now."""
        self._link, self._serving = link, serving
        self._milliseconds = max(1, int(lifetime.total_seconds() * 1000))
        # Replicas that differ in these may rank differently.
        self._shape = [
            settings.history_items,
            settings.beams,
            settings.engine.value,
            settings.device.value,
            settings.dtype.value,
        ]
        self._finder = Grouped("answer-finder", self._get, most=TOGETHER, max_queued=QUEUED)
        self._keeper = Grouped("answer-keeper", self._set, most=TOGETHER, max_queued=QUEUED)

    def start(self) -> None:
        self._finder.start()
        self._keeper.start()

    def stop(self) -> None:
        self._finder.stop()
        self._keeper.stop()

    def question(
        self, request: RecommendationRequest, past: UserPast, latest: Sequence[str], index: CatalogueIndex
    ) -> bytes:
        """What is asked, but for the model. latest: the history that is taken."""
        what = [
            self._shape,
            request.user_id,
            latest,
            request.limit,
            request.include_seen,
            [] if request.include_seen else past.seen,
            sorted(request.exclude_item_ids),
            request.filters.model_dump(),
            request.filter_mode,
            request.diversity,
            index.base_id,
            index.revision,
        ]
        return hashlib.blake2b(orjson.dumps(what), digest_size=24).digest()

    async def find(self, question: bytes, model: tuple[str | None, str | None] | None = None) -> KeptAnswer | None:
        """What this model (base, adapter version; None: the one in service now) answered to this question, if it is
        still kept."""
        base_id, version = model or self._serving()
        if base_id is None:
            return None
        try:
            raw = await asyncio.wrap_future(self._finder.ask(self._key(question, base_id, version)))
        except (RedisAway, Unavailable):
            CACHE.labels("recommendation", "away").inc()
            return None
        CACHE.labels("recommendation", "miss" if raw is None else "hit").inc()
        if raw is None:
            return None
        item_ids, scores, *made = orjson.loads(raw)
        return KeptAnswer(tuple(item_ids), tuple(scores), base_id, version, *made)

    def keep(self, question: bytes, answer: KeptAnswer) -> None:
        """Leave an answer for whoever asks next. It is not waited for."""
        if not self._link.up:
            return
        key = self._key(question, answer.base_id, answer.adapter_version)
        try:
            made = [answer.recommendation_id, answer.computed, answer.settings_id]
            self._keeper.ask((key, orjson.dumps([answer.item_ids, answer.scores, *made])))
        except Unavailable:  # so much is going on that this one does not matter
            return

    def _key(self, question: bytes, base_id: str, version: str | None) -> str:
        digest = hashlib.blake2b(orjson.dumps([base_id, version]), key=question, digest_size=16)
        return self._link.key("answer", digest.hexdigest())

    def _get(self, keys: Sequence[str]) -> list[bytes | None]:
        found: Any = self._link.run(lambda client: client.mget(keys))  # bytes or None: nothing is decoded
        return list(found)

    def _set(self, answers: Sequence[tuple[str, bytes]]) -> list[None]:
        def send(client: "Redis") -> None:
            with client.pipeline(transaction=False) as pipeline:
                for key, value in answers:
                    pipeline.set(key, value, px=self._milliseconds)
                pipeline.execute()

        self._link.run(send)
        return [None] * len(answers)
