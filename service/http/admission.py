"""How many requests may be inside at once: a burst is let in, a queue that stands is not.

The rule is AdmissionMiddleware's. `service.http.door` asks the same question earlier, where a refusal costs least.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Unavailable
from service.telemetry import SHED

RECOMMENDATIONS, OTHERS = "recommendations", "others"
ELSEWHERE = frozenset({"/v1/events", "/v1/items"})  # their writes have bounds of their own
LONGEST_RETRY_S = 3  # clients that were refused together do not come back together
REFUSAL = "more requests come in than can be answered; send this one again after Retry-After seconds"


class House:
    """How many requests of a kind are inside, and whether one more may enter. On the event loop only.

    A burst is let in, up to `most`, for batches soon have it behind them. What is still `full` after `patience` seconds
    is a standing queue: it adds its length to every reply and nothing to the throughput. From then on no more than
    `full` are inside, until nobody had to be refused for `patience` seconds (CoDel's idea: Nichols and Jacobson,
    "Controlling Queue Delay", 2012; requests are counted, not timed: how long one takes depends on the model).
    """

    def __init__(
        self, kind: str, full: int, most: int, patience_s: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """full: as many as keep the server busy."""
        self._full, self._most, self._patience_s, self._monotonic = full, most, patience_s, monotonic
        self._queue, self._burst = SHED.labels(kind, "queue"), SHED.labels(kind, "burst")
        self.inside = self._expected = 0
        self._full_since: float | None = None
        self._standing_until: float | None = None

    @property
    def is_full(self) -> bool:
        """Whether as many are inside or expected as keep the server busy: `refuses` may say so."""
        return self.inside + self._expected >= self._full

    def refuses(self, *, expected: bool = False) -> bool:
        """Whether one more may not enter now, which is counted. expected: those that were let through are inside."""
        inside = self.inside + self._expected if expected else self.inside
        if inside < self._full:
            return False
        now = self._monotonic()
        if self._standing_until is not None and now > self._standing_until:
            self._standing_until, self._full_since = None, now
        if self._standing_until is not None or (
            self._full_since is not None and now - self._full_since > self._patience_s
        ):
            self._standing_until = now + self._patience_s
            self._queue.inc()
            return True
        if inside >= self._most:
            self._burst.inc()
            return True
        return False

    def expect(self) -> None:
        """One is let through at the door. If its body is there it enters in this turn of the event loop; else it is
        forgotten, so that nobody takes room by half a request.
        """
        self._expected += 1
        asyncio.get_running_loop().call_soon(self._came)

    def _came(self) -> None:
        self._expected -= 1

    def enter(self) -> None:
        self.inside += 1
        if self.inside >= self._full and self._full_since is None:
            self._full_since = self._monotonic()

    def leave(self) -> None:
        self.inside -= 1
        if self.inside < self._full:
            self._full_since = None


def kind_of(path: str) -> str | None:
    """Which house a request wants to enter. None: health, metrics, pages, admin routes; these are never refused."""
    if not path.startswith("/v1/") or path.startswith("/v1/admin/") or path in ELSEWHERE:
        return None
    return RECOMMENDATIONS if path.endswith(("/recommendations", "/similar")) else OTHERS


def retry_after() -> int:
    return random.randint(1, LONGEST_RETRY_S)


class AdmissionMiddleware:
    """Raises Unavailable for what `houses` (by kind) have no room for.

    A request is inside from when its whole body is there until its reply begins, so that slow clients take no room; a
    body is read after the key was looked at, so that strangers with one take none either.
    """

    def __init__(self, app: ASGIApp, houses: Mapping[str, House]) -> None:
        self.app, self._houses = app, houses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = kind_of(scope["path"]) if scope["type"] == "http" else None
        if kind is None:
            await self.app(scope, receive, send)
            return
        house, inside = self._houses[kind], False

        def enter() -> None:
            nonlocal inside
            if house.refuses():
                raise Unavailable(REFUSAL, retry_after=retry_after())
            house.enter()
            inside = True

        def leave() -> None:
            nonlocal inside
            if inside:
                house.leave()
                inside = False

        async def received() -> Message:
            message = await receive()
            if scope["method"] == "POST" and message["type"] == "http.request" and not message.get("more_body"):
                enter()
            return message

        async def sent(message: Message) -> None:
            leave()
            await send(message)

        if scope["method"] != "POST":  # there is no body to wait for
            enter()
        try:
            await self.app(scope, received, sent)
        finally:
            leave()
