"""A rate with a burst, as one number for each key: the time at which the key would be even again (GCRA).

The generic cell rate algorithm is a token bucket without a clock that fills it (ITU-T I.371, annex A).
"""

from collections.abc import Sequence
from typing import Any

from service.kit.redis_link import RedisLink

MOST_KEYS = 10_000  # held in memory; those that are even again go first

# The same as `take`, for several keys, by the server's clock. KEYS: one for each call. ARGV: interval (microseconds),
# burst. Microseconds since 1970 are whole numbers in a double.
TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local waits = {}
for i, key in ipairs(KEYS) do
  local even = math.max(tonumber(redis.call('GET', key) or '0'), now)
  local early = even - (burst - 1) * interval - now
  if early > 0 then
    waits[i] = math.ceil(early)
  else
    even = even + interval
    redis.call('SET', key, string.format('%.0f', even), 'PX', math.ceil((even - now) / 1000) + 1)
    waits[i] = 0
  end
end
return waits
"""


def take(even_at: float, now: float, interval: float, burst: int) -> tuple[float, float]:
    """One call of a key that is even at `even_at`: when it is even now, and how long the call is too early.

    All in the same unit; interval: between calls in the long run. A call that is too early is not counted.
    """
    even = max(even_at, now)
    early = even - (burst - 1) * interval - now
    return (even_at, early) if early > 0 else (even + interval, 0.0)


class Rates:
    """Keys of one process; for one thread."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._interval, self._burst = 1.0 / per_second, burst
        self._even_at: dict[str, float] = {}

    def wait(self, key: str, now: float) -> float:
        """Seconds that a call would be too early, without making it."""
        return max(0.0, self._even_at.get(key, now) - (self._burst - 1) * self._interval - now)

    def take(self, key: str, now: float) -> float:
        """Seconds that this call is too early; 0: it may go on. now: monotonic seconds."""
        if len(self._even_at) >= MOST_KEYS and key not in self._even_at:
            self._even_at = {held: even for held, even in self._even_at.items() if even > now}
            if len(self._even_at) >= MOST_KEYS:
                self._even_at.clear()
        even, early = take(self._even_at.get(key, now), now, self._interval, self._burst)
        self._even_at[key] = even
        return early


class SharedRates:
    """Keys of all processes that use the same Redis."""

    def __init__(self, link: RedisLink, per_second: float, burst: int) -> None:
        self._link, self._interval_us, self._burst = link, 1e6 / per_second, burst

    def take(self, keys: Sequence[str]) -> list[float]:
        """As Rates.take, one call of each of `keys` in their order. Raises RedisAway."""
        named = [self._link.key("rate", key) for key in keys]
        waits: Sequence[Any] = self._link.script(TAKE, named, [self._interval_us, self._burst])
        return [wait / 1e6 for wait in waits]
