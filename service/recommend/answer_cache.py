"""What was generated for exactly the same question a moment ago, shared by the replicas through Redis.

The key holds everything that shapes the answer (the past itself, not only whose it is; the base, the adapter, the
catalogue's revision), so there is nothing to invalidate: whatever changes makes another key. But for an erasure, which
leaves a mark: while there is one, nothing is kept or found for that user, and it outlasts what was kept before it. An
answer carries the link's epoch too, for an erasure that Redis could not be told of.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import orjson

from service.catalog.index import CatalogueIndex
from service.errors import Unavailable
from service.kit.grouped import Grouped
from service.kit.redis_link import RedisAway, RedisLink, new_token
from service.recommend.history import UserPast
from service.recommend.schemas import RecommendationRequest
from service.settings import Settings
from service.telemetry import CACHE

TOGETHER = 64
QUEUED = 16 * TOGETHER
FORMAT = 2  # of what is kept; replicas of another version keep theirs apart
MARK_MS = 120_000  # a minute that an answer lives at most, and one that a request takes to leave it

# KEYS: epoch, then for each answer its key and its user's mark. ARGV: milliseconds, a new epoch's token, the answers.
KEEP = """
local epoch = redis.call('GET', KEYS[1])
if not epoch then
  epoch = ARGV[2]
  redis.call('SET', KEYS[1], epoch)
end
for i = 3, #ARGV do
  if not redis.call('GET', KEYS[2 * i - 3]) then
    redis.call('SET', KEYS[2 * i - 4], epoch .. '|' .. ARGV[i], 'PX', ARGV[1])
  end
end
return 1
"""


def forget(link: RedisLink, user_id: str) -> None:
    """The user is erased: what was answered is not given again, nor what is being answered. Never raises; when Redis
    cannot be told, nothing in it is trusted any more."""
    try:
        link.run(lambda client: client.set(_mark(link, user_id), 1, px=MARK_MS))
    except RedisAway:
        link.distrust()


def _mark(link: RedisLink, user_id: str | None) -> str:
    """Where it says that a user was erased; None: where it never says so."""
    who = "nobody" if user_id is None else hashlib.blake2b(user_id.encode(), digest_size=16).hexdigest()
    return link.key("erased", who)


@dataclass(frozen=True, slots=True)
class Question:
    """digest: of everything that is asked but for the model. mark: the key that says that its user was erased."""

    digest: bytes
    mark: str


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
    ) -> Question:
        """latest: the history that is taken."""
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
        digest = hashlib.blake2b(orjson.dumps(what), digest_size=24).digest()
        return Question(digest, _mark(self._link, request.user_id))

    async def find(self, question: Question, model: tuple[str | None, str | None] | None = None) -> KeptAnswer | None:
        """What this model (base, adapter version; None: the one in service now) answered to this question, if it is
        still kept."""
        base_id, version = model or self._serving()
        if base_id is None:
            return None
        try:
            raw = await asyncio.wrap_future(self._finder.ask((self._key(question, base_id, version), question.mark)))
        except (RedisAway, Unavailable):
            CACHE.labels("recommendation", "away").inc()
            return None
        CACHE.labels("recommendation", "miss" if raw is None else "hit").inc()
        if raw is None:
            return None
        item_ids, scores, *made = orjson.loads(raw)
        return KeptAnswer(tuple(item_ids), tuple(scores), base_id, version, *made)

    def keep(self, question: Question, answer: KeptAnswer) -> None:
        """Leave an answer for whoever asks next. It is not waited for."""
        if not self._link.up:
            return
        key = self._key(question, answer.base_id, answer.adapter_version)
        try:
            made = [answer.recommendation_id, answer.computed, answer.settings_id]
            self._keeper.ask((key, question.mark, orjson.dumps([answer.item_ids, answer.scores, *made])))
        except Unavailable:  # so much is going on that this one does not matter
            return

    def _key(self, question: Question, base_id: str, version: str | None) -> str:
        digest = hashlib.blake2b(orjson.dumps([FORMAT, base_id, version]), key=question.digest, digest_size=16)
        return self._link.key("answer", digest.hexdigest())

    def _get(self, asked: Sequence[tuple[str, str]]) -> list[bytes | None]:
        keys = [self._link.epoch_key, *(key for pair in asked for key in pair)]
        held: Any = self._link.run(lambda client: client.mget(keys))  # bytes or None: nothing is decoded
        stamp = (held[0] or b"") + b"|"
        return [
            raw[len(stamp) :] if raw is not None and mark is None and raw.startswith(stamp) else None
            for raw, mark in zip(held[1::2], held[2::2], strict=True)
        ]

    def _set(self, answers: Sequence[tuple[str, str, bytes]]) -> list[None]:
        keys = [self._link.epoch_key, *(key for answer in answers for key in answer[:2])]
        self._link.script(KEEP, keys, [self._milliseconds, new_token(), *(value for _, _, value in answers)])
        return [None] * len(answers)
