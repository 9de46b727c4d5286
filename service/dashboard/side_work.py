"""What a page asks for that takes longer than a page may: done one after the other on a thread that gives way.

What was made is kept, so that the next page has it at once. Requests never wait for this thread, and it runs nothing
unless somebody looks.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import structlog

from service.errors import AdaptideError, StoreUnavailable, Unavailable
from service.kit.priority import give_way

T = TypeVar("T")
MOST_QUEUED, MOST_KEPT = 8, 64
FAILURE_KEPT_S = 10.0  # then it is tried again: the store comes back, a file appears

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Piece(Generic[T]):
    """value None: it is still being made (`error` None), or could not be. waiting: a newer one is being made.

    Both: a newer one could not be made; the value is the one before it.
    """

    value: T | None
    error: str | None = None
    waiting: bool = False


@dataclass(slots=True)
class _Kept:
    made: Any
    error: str | None
    at: float


class SideWork:
    """start() and stop() once each; everything else from any thread."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._queue: deque[tuple[Hashable, Callable[[], Any]]] = deque()
        self._coming: dict[Hashable, Future[None]] = {}
        self._alone: dict[Hashable, str] = {}
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="dashboard-work", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the piece in progress; what is queued is dropped."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def ask(
        self, key: Hashable, work: Callable[[], T], *, fresh_s: float, wait_s: float, alone: str | None = None
    ) -> Piece[T]:
        """What `work` made under this key not longer than `fresh_s` ago; else it is begun, and waited for so long.

        An older piece is better than none: it is returned when the newer one is not there in time, or fails. A failure
        is kept for FAILURE_KEPT_S. alone: a kind of work, of which one is begun at a time. Raises Unavailable when
        that is under way, or too much is queued.
        """
        with self._changed:
            if alone is not None and alone in self._alone.values():
                raise Unavailable(f"another {alone} runs; try again when it has ended", retry_after=10)
            kept = self._fresh(key, fresh_s)
            if kept is not None:
                return Piece(kept.made, kept.error)
            coming = self._coming.get(key)
            if coming is None:
                if len(self._queue) >= MOST_QUEUED or self._stopping:
                    raise Unavailable("other pages are being made; load this one again in a moment", retry_after=5)
                coming = self._coming[key] = Future()
                if alone is not None:
                    self._alone[key] = alone
                # In the request's context: what is logged and audited on the way names the request.
                self._queue.append((key, partial(copy_context().run, work)))
                self._changed.notify_all()
        _wait(coming, wait_s)
        return self.kept(key)

    def kept(self, key: Hashable) -> Piece[Any]:
        """What was made last under this key, however old."""
        with self._changed:
            kept, waiting = self._kept.get(key), key in self._coming
        return Piece(None, None, waiting) if kept is None else Piece(kept.made, kept.error, waiting)

    def forget(self, key: Hashable) -> None:
        """Drop what was made under this key."""
        with self._changed:
            self._kept.pop(key, None)

    def _fresh(self, key: Hashable, fresh_s: float) -> _Kept | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        if self._monotonic() - kept.at > (fresh_s if kept.error is None else min(fresh_s, FAILURE_KEPT_S)):
            return None
        self._kept.move_to_end(key)
        return kept

    def _run(self) -> None:
        give_way()
        while True:
            with self._changed:
                while not self._queue and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    for coming in self._coming.values():
                        coming.set_result(None)
                    return
                key, work = self._queue.popleft()
            made, error = None, None
            try:
                made = work()
            except AdaptideError as failure:
                away = isinstance(failure, StoreUnavailable)  # whose detail is the operator's
                error = "the store did not answer; load the page again" if away else failure.detail
                log.warning("page_not_made", slug=failure.slug, detail=failure.detail)
            except Exception as failure:  # the thread must outlive any one page
                error = f"{type(failure).__name__}; the log of the service has the reason"
                log.exception("page_crashed")
            with self._changed:
                if error is not None and (before := self._kept.get(key)) is not None:
                    made = before.made
                self._kept[key] = _Kept(made, error, self._monotonic())
                self._kept.move_to_end(key)
                while len(self._kept) > MOST_KEPT:
                    self._kept.popitem(last=False)
                coming = self._coming.pop(key)
                self._alone.pop(key, None)
            coming.set_result(None)


def _wait(coming: "Future[None]", seconds: float) -> None:
    try:
        coming.result(seconds)
    except TimeoutError:
        return
