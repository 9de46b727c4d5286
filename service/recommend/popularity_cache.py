"""Popularity as one replica has counted it, left in Redis in pieces, so that a new replica goes on from there."""

import hashlib
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING

import orjson
import structlog

from service.kit.redis_link import RedisAway, RedisLink, new_token
from service.recommend.votes import BLOCK
from service.telemetry import CACHE

if TYPE_CHECKING:
    from redis import Redis

PIECE = 20_000  # items in one value: about half a megabyte
SHARE_EVERY = timedelta(minutes=1)
LONGEST_CHAIN = timedelta(days=1)
"""Counts that began longer ago are nobody's start: a count from nothing sees what was passed over or erased."""
REPLACED_KEPT_MS = 60_000  # for replicas that are reading them
FIRST_CONNECTION_S = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Counts:
    """Every interaction that counts with seq <= through_seq, as Popularity.state gives it.

    from_nothing_at: POSIX seconds, when the first of a chain of replicas began with the first event.
    """

    through_seq: int
    from_nothing_at: float
    offset: float
    weights: Mapping[str, float]


class SharedCounts:
    """For one thread; never raises, and does nothing while Redis is away."""

    def __init__(
        self,
        link: RedisLink,
        half_life: timedelta,
        ignored_types: Collection[str],
        every: timedelta = SHARE_EVERY,
    ) -> None:
        """every: replicas share no more often, all of them together."""
        self._link, self._every = link, every
        self._shared_at = float("-inf")
        what = orjson.dumps([half_life.total_seconds(), sorted(ignored_types), BLOCK])
        self._name = hashlib.blake2b(what, digest_size=8).hexdigest()  # other settings count otherwise

    def load(self, newest_seq: int) -> Counts | None:
        """What is shared; None when nothing usable is, such as counts that go beyond the newest stored event."""
        self._link.wait_until_tried(FIRST_CONNECTION_S)
        try:
            counts = self._link.run(self._read, patient=True)
        except RedisAway:
            CACHE.labels("popularity", "away").inc()
            return None
        good = (
            counts is not None
            and counts.through_seq <= newest_seq
            and time.time() - counts.from_nothing_at < LONGEST_CHAIN.total_seconds()
        )
        CACHE.labels("popularity", "hit" if good else "miss").inc()
        if counts is None or not good:
            return None
        log.info("popularity_continued", through_seq=counts.through_seq, items=len(counts.weights))
        return counts

    def due(self) -> bool:
        """Whether it is worth the while to gather counts for `share`."""
        return time.monotonic() - self._shared_at >= self._every.total_seconds()

    def share(self, counts: Counts) -> None:
        """Leave these for others, unless somebody did so a moment ago."""
        self._shared_at = time.monotonic()
        try:
            self._link.run(lambda client: self._write(client, counts), patient=True)
        except RedisAway as error:
            log.debug("popularity_not_shared", reason=str(error))

    def _read(self, client: "Redis") -> Counts | None:
        raw = client.get(self._key("head"))
        if raw is None:
            return None
        head = orjson.loads(raw)
        weights: dict[str, float] = {}
        for number in range(head["pieces"]):
            piece = client.get(self._key(head["token"], str(number)))
            if piece is None:
                return None
            item_ids, values = orjson.loads(piece)
            weights.update(zip(item_ids, values, strict=True))
        return Counts(head["through_seq"], head["from_nothing_at"], head["offset"], weights)

    def _write(self, client: "Redis", counts: Counts) -> None:
        left_ms = int((counts.from_nothing_at + LONGEST_CHAIN.total_seconds() - time.time()) * 1000)
        turn_ms = max(1, int(self._every.total_seconds() * 1000))
        if left_ms <= 0 or not client.set(self._key("turn"), 1, nx=True, px=turn_ms):
            return
        raw = client.get(self._key("head"))
        before = None if raw is None else orjson.loads(raw)
        # Counts that began later have passed over less, so they stay even where they are not ahead.
        ours = (counts.from_nothing_at, counts.through_seq)
        if before is not None and (before["from_nothing_at"], before["through_seq"]) >= ours:
            return
        token, pieces = new_token(), 0
        items = iter(counts.weights.items())
        while some := list(islice(items, PIECE)):
            item_ids, values = zip(*some, strict=True)
            client.set(self._key(token, str(pieces)), orjson.dumps([item_ids, values]), px=left_ms)
            pieces += 1
        head = {
            "token": token,
            "pieces": pieces,
            "through_seq": counts.through_seq,
            "from_nothing_at": counts.from_nothing_at,
            "offset": counts.offset,
        }
        client.set(self._key("head"), orjson.dumps(head), px=left_ms)
        if before is not None:
            for number in range(before["pieces"]):
                client.pexpire(self._key(before["token"], str(number)), REPLACED_KEPT_MS)

    def _key(self, *parts: str) -> str:
        return self._link.key("popularity", self._name, *parts)
