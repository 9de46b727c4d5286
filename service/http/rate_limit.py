"""So many requests a second for each API key; with Redis for all replicas together, without it for each by itself."""

import asyncio
import hashlib
import math
import time

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import TooManyRequests, Unavailable
from service.http.credentials import authorization, token_of
from service.kit.grouped import Grouped
from service.kit.rates import Rates, SharedRates
from service.kit.redis_link import RedisAway, RedisLink
from service.telemetry import RATE_LIMITED

LIMITED = "/v1/"
"""What is limited; health, metrics and documentation never are."""
TOGETHER = 128


class RateLimiter:
    """start() and stop() once each; `too_early` on the event loop."""

    def __init__(self, per_second: float, burst: int, link: RedisLink | None = None) -> None:
        """per_second: of each key, in the long run; 0: no limit. burst: at once after a pause."""
        self._own = Rates(per_second, burst) if per_second else None
        self._link = link
        self._grouped: Grouped[str, float] | None = None
        if per_second and link is not None:
            shared = SharedRates(link, per_second, burst)
            self._grouped = Grouped("rate-limiter", shared.take, most=TOGETHER, max_queued=16 * TOGETHER)

    @property
    def limits(self) -> bool:
        return self._own is not None

    def start(self) -> None:
        if self._grouped is not None:
            self._grouped.start()

    def stop(self) -> None:
        if self._grouped is not None:
            self._grouped.stop()

    async def too_early(self, key: str) -> float:
        """Seconds that this request of `key` is too early; 0: it may go on."""
        if self._own is None:
            return 0.0
        if self._grouped is not None and self._link is not None and self._link.up:
            try:
                return await asyncio.wrap_future(self._grouped.ask(key))
            except (RedisAway, Unavailable):
                pass
        return self._own.take(key, time.monotonic())


class RateLimitMiddleware:
    """429 with Retry-After for a key that asks too often. What carries no key is left to be refused as such."""

    def __init__(self, app: ASGIApp, limiter: RateLimiter) -> None:
        self.app, self.limiter = app, limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.limiter.limits and scope["path"].startswith(LIMITED):
            given = token_of(scope) or authorization(scope)
            if given:
                # Of the whole token, so that nobody can use up another's rate by knowing the public part of a key.
                key = hashlib.sha256(given.encode()).hexdigest()[:32]
                early = await self.limiter.too_early(key)
                if early > 0:
                    RATE_LIMITED.inc()
                    raise TooManyRequests(
                        "this API key has sent too many requests; wait as long as Retry-After says",
                        retry_after=max(1, math.ceil(early)),
                    )
        await self.app(scope, receive, send)
