"""So many refused keys a second for each address; above that nothing unknown is read, parsed or looked up."""

import ipaddress
import math
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import TooManyRequests
from service.http.credentials import token_of
from service.http.rate_limit import LIMITED
from service.kit.rates import Rates
from service.telemetry import RATE_LIMITED


class FailureLimiter:
    """Failed authentications of this process by address; on the event loop."""

    def __init__(self, per_second: float, burst: int) -> None:
        """per_second: of each address, in the long run; 0: no limit. burst: at once after a pause."""
        self._rates = Rates(per_second, burst) if per_second else None

    def check(self, scope: Scope) -> None:
        """Raises TooManyRequests when the address has failed too often."""
        if self._rates is not None and (early := self._rates.wait(_address(scope), time.monotonic())) > 0:
            RATE_LIMITED.inc()
            raise TooManyRequests(
                "too many requests without a good key came from your address; wait as long as Retry-After says",
                retry_after=max(1, math.ceil(early)),
            )

    def note(self, scope: Scope) -> None:
        """One more failure of this address."""
        if self._rates is not None:
            self._rates.take(_address(scope), time.monotonic())


class FailureLimitMiddleware:
    """429 with Retry-After for whoever keeps coming without a good key; before the body is read.

    was_good: whether a token was good lately. Such a one passes whatever else comes from its address.
    """

    def __init__(self, app: ASGIApp, limiter: FailureLimiter, was_good: Callable[[str], bool]) -> None:
        self.app, self.limiter, self.was_good = app, limiter, was_good

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(LIMITED) or self.was_good(token_of(scope)):
            await self.app(scope, receive, send)
            return
        self.limiter.check(scope)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 401:
                self.limiter.note(scope)
            await send(message)

        await self.app(scope, receive, watched)


def _address(scope: Scope) -> str:
    """The client's address; of IPv6 the first 64 bits, for one client has that many at least."""
    host = scope["client"][0] if scope.get("client") else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return str(host)
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host
