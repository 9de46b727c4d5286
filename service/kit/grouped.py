"""Calls that wait at the same time are done together: one thread, one transaction, one commit for all of them."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from service.errors import StoreUnavailable, Unavailable

T = TypeVar("T")
R = TypeVar("R")


class Grouped(Generic[T, R]):
    """`ask` from any thread; start() and stop() once each.

    No timer: while one group is done the next one gathers, so that a lone call never waits.
    """

    def __init__(self, name: str, do: Callable[[Sequence[T]], Sequence[R]], *, most: int, max_queued: int) -> None:
        """do: one result for each of up to `most` calls, in their order. When it returns, what it did is committed.

        When it raises StoreUnavailable, all of a group fail; after any other failure each call is done by itself, so
        that one that cannot be done fails alone: `do` leaves nothing behind when it raises.
        """
        self._do, self._most, self._max_queued = do, most, max_queued
        self._waiting: deque[tuple[T, Future[R]]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Do what is waiting, then end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def ask(self, call: T) -> "Future[R]":
        """The result to come; cancel it to drop the call. Raises Unavailable when stopping or too many wait."""
        future: Future[R] = Future()
        with self._changed:
            if self._stopping:
                raise Unavailable("the service is stopping", retry_after=1)
            if len(self._waiting) >= self._max_queued:
                raise Unavailable("too many calls wait for the store", retry_after=1)
            self._waiting.append((call, future))
            if len(self._waiting) == 1:
                self._changed.notify()
        return future

    def _run(self) -> None:
        while group := self._next():
            calls = [call for call, _ in group]
            try:
                self._settle(group, self._do(calls))
            except StoreUnavailable as error:
                for _, future in group:
                    future.set_exception(error)
            except Exception as error:  # the thread must outlive any one call; its caller gets the error
                if len(group) == 1:
                    group[0][1].set_exception(error)
                    continue
                for call, future in group:
                    try:
                        self._settle([(call, future)], self._do([call]))
                    except Exception as own:  # as above
                        future.set_exception(own)

    def _next(self) -> list[tuple[T, Future[R]]]:
        """The next group; empty at the end."""
        with self._changed:
            while True:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if not self._waiting:
                    return []
                taken = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
                if wanted := [(call, future) for call, future in taken if future.set_running_or_notify_cancel()]:
                    return wanted

    @staticmethod
    def _settle(group: "Sequence[tuple[T, Future[R]]]", results: Sequence[R]) -> None:
        for (_, future), result in zip(group, results, strict=True):
            future.set_result(result)
