"""Users' pasts in Redis, never older than the last event that was acknowledged (docs/decisions/0018).

One key for each user holds a past or a lease. Who finds nothing leaves a lease, reads the store, and may put the past
in its place only while the lease is still there; who has stored an event removes whatever the key holds. So a past that
was read before an event cannot be kept after it. Both carry the link's epoch.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import orjson
import structlog

from service.events.schemas import Event
from service.kit.redis_link import RedisAway, RedisLink, new_token
from service.recommend.history import UserPast
from service.settings import Settings
from service.telemetry import CACHE

LEASE_MS = 10_000  # longer than any read of a past that somebody still waits for
REMOVED_TOGETHER = 1_000
FORMAT = 2  # of what is kept of a past; replicas of another version keep theirs apart

# KEYS: epoch, users. ARGV: settings, a new epoch's token, a new lease's token, a lease's milliseconds.
LOOK_UP = """
local epoch = redis.call('GET', KEYS[1])
if not epoch then
  epoch = ARGV[2]
  redis.call('SET', KEYS[1], epoch)
end
local stamp = epoch .. '|' .. ARGV[1] .. '|'
local found = {}
for i = 2, #KEYS do
  local held = redis.call('GET', KEYS[i])
  if not held or string.sub(held, 1, #stamp) ~= stamp then
    held = stamp .. 'lease|' .. ARGV[3]
    redis.call('SET', KEYS[i], held, 'PX', ARGV[4])
  end
  found[i - 1] = held
end
return found
"""

# KEYS: users. ARGV: a past's milliseconds, then for each user the lease and what takes its place.
KEEP = """
for i, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[2 * i] then
    redis.call('SET', key, ARGV[2 * i + 1], 'PX', ARGV[1])
  end
end
return 1
"""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Lease:
    """Leave to keep what is read from the store from now on."""

    held: bytes


class PastCache:
    """Safe to share between threads; never raises, and does nothing while Redis is away."""

    def __init__(self, link: RedisLink, settings: Settings, lifetime: timedelta | None = None) -> None:
        """lifetime: of a past; settings.history_cache unless given."""
        self._link = link
        self._ignored_types = settings.ignored_event_types
        self._milliseconds = max(1, int((lifetime or settings.history_cache).total_seconds() * 1000))
        # Replicas with other settings make other pasts of the same events.
        what = [FORMAT, settings.history_items, settings.seen_items, sorted(settings.ignored_event_types)]
        self._settings = hashlib.blake2b(orjson.dumps(what), digest_size=8).hexdigest()

    def look_up(self, users: Sequence[str]) -> list[UserPast | Lease | None]:
        """For each user the past, or a lease, or None: then nothing may be kept."""
        if not users:
            return []
        keys = [self._link.epoch_key, *(self._key(user) for user in users)]
        try:
            held = self._link.script(LOOK_UP, keys, [self._settings, new_token(), new_token(), LEASE_MS])
        except RedisAway:
            CACHE.labels("history", "away").inc(len(users))
            return [None] * len(users)
        found: list[UserPast | Lease | None] = [_read(one) for one in held]
        hits = sum(isinstance(one, UserPast) for one in found)
        CACHE.labels("history", "hit").inc(hits)
        CACHE.labels("history", "miss").inc(len(found) - hits)
        return found

    def keep(self, pasts: Mapping[str, tuple[Lease, UserPast]]) -> None:
        """user -> what was read from the store after its lease was had."""
        if not pasts:
            return
        values: list[str | bytes | int | float] = [self._milliseconds]
        for lease, past in pasts.values():
            stamp = lease.held.rsplit(b"lease|", 1)[0]
            values += [lease.held, stamp + b"past|" + orjson.dumps([past.latest, past.seen, past.through_seq])]
        try:
            self._link.script(KEEP, [self._key(user) for user in pasts], values)
        except RedisAway as error:
            log.debug("pasts_not_kept", reason=str(error))

    def stored(self, events: Sequence[Event]) -> None:
        """These events are committed, or may be: the pasts that they belong to are read anew."""
        self.forget({event.user_id for event in events if event.event_type not in self._ignored_types})

    def forget(self, users: Collection[str]) -> None:
        """Their pasts are no longer what they were. When Redis cannot be told, nothing in it is trusted any more."""
        keys = [self._key(user) for user in users]
        try:
            for first in range(0, len(keys), REMOVED_TOGETHER):
                some = keys[first : first + REMOVED_TOGETHER]
                self._link.run(lambda client, some=some: client.delete(*some))  # type: ignore[misc]  # bound for B023
        except RedisAway:
            self._link.distrust()

    def _key(self, user_id: str) -> str:
        return self._link.key("past", hashlib.blake2b(user_id.encode(), digest_size=16).hexdigest())


def _read(held: bytes) -> UserPast | Lease:
    _, _, kind, rest = held.split(b"|", 3)
    if kind != b"past":
        return Lease(held)
    latest, seen, through_seq = orjson.loads(rest)
    return UserPast(tuple(latest), tuple(seen), through_seq)
