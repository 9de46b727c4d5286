"""How much a process takes in at once: requests that write, and the bytes of bodies. More is refused, not queued.

The bytes of a body count from when they come and its request from when it is whole, once the key is known to be good,
until the reply: whoever has no key takes no room, who sends slowly little, and what waits for a slow store has a bound
in memory and in number. Writers have threads of their own, so that they hold up nobody else while the store does.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from service.errors import Unavailable
from service.http.admission import RECOMMENDATIONS, REFUSAL, retry_after
from service.telemetry import INTAKE_BYTES, INTAKE_REFUSED, INTAKE_REQUESTS, SHED

T = TypeVar("T")


class Intake:
    """On the event loop only."""

    def __init__(self, *, most_requests: int, most_bytes: int, workers: int, patience: timedelta) -> None:
        """workers: how many write at the same time. patience: how long a request waits for one of them."""
        self._most_requests, self._most_bytes = most_requests, most_bytes
        self._patience_s = patience.total_seconds()
        self._requests = self._bytes = 0
        self._turns = asyncio.Semaphore(workers)
        self._threads = CapacityLimiter(workers)

    @contextmanager
    def place(self) -> "Iterator[Place]":
        """Room for one request, which grows with its body, while the block runs."""
        place = Place(self)
        try:
            yield place
        finally:
            self._change(-place.requests, -place.size)

    async def work(self, do: Callable[[], T]) -> T:
        """What `do` returns or raises, on a thread. Raises Unavailable when none was free within the patience."""
        try:
            async with asyncio.timeout(self._patience_s):
                await self._turns.acquire()
        except TimeoutError:
            raise refused("slow", "the store is slower than events and items come in") from None
        try:
            return await to_thread.run_sync(do, limiter=self._threads)
        finally:
            self._turns.release()

    def _change(self, requests: int, size: int) -> None:
        self._requests += requests
        self._bytes += size
        INTAKE_REQUESTS.inc(requests)
        INTAKE_BYTES.inc(size)


class Room:
    """Bytes of bodies that are held at once besides those of the intake. On the event loop only."""

    def __init__(self, most_bytes: int) -> None:
        self._free = most_bytes

    @contextmanager
    def place(self) -> Iterator[Callable[[int], None]]:
        """What is to be told how many bytes have come, while the block holds them. It raises Unavailable."""
        taken = 0

        def add(size: int) -> None:
            nonlocal taken
            if size > self._free:
                SHED.labels(RECOMMENDATIONS, "bytes").inc()
                raise Unavailable(REFUSAL, retry_after=retry_after())
            self._free -= size
            taken += size

        try:
            yield add
        finally:
            self._free += taken


class Place:
    """What one request holds."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self.size = self.requests = 0

    def add(self, size: int) -> None:
        """So many bytes of the body have come. Raises Unavailable when there is no room for them."""
        if self._intake._bytes + size > self._intake._most_bytes:
            raise refused("bytes", "too many bytes of events and items are being stored")
        self._intake._change(0, size)
        self.size += size

    def is_whole(self) -> None:
        """The body is there. Raises Unavailable when as many are at work or wait already as may."""
        if self._intake._requests >= self._intake._most_requests:
            raise refused("requests", "too many events and items are being stored")
        self._intake._change(1, 0)
        self.requests = 1


def refused(reason: str, why: str) -> Unavailable:
    INTAKE_REFUSED.labels(reason).inc()
    detail = f"{why}; send this again after Retry-After seconds, it will be counted once"
    return Unavailable(detail, retry_after=retry_after())
