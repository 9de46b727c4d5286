"""When to try again what failed: ever more rarely, at once after a success."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Backoff:
    """Pauses of `first_s`, twice as long each time, `longest_s` at most. Not to be shared between threads."""

    def __init__(self, first_s: float, longest_s: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._first_s, self._longest_s, self._monotonic = first_s, longest_s, monotonic
        self._failures, self._at = 0, 0.0

    @property
    def pause_s(self) -> float:
        """How long it is until the next attempt; 0: it may be made."""
        return max(0.0, self._at - self._monotonic()) if self._failures else 0.0

    def failed(self) -> None:
        self._at = self._monotonic() + min(self._first_s * 2.0**self._failures, self._longest_s)
        self._failures += 1

    def reset(self) -> None:
        self._failures = 0


class Refused(Exception):
    """The breaker did not let it through; `str` says why."""


class Breaker:
    """Keeps callers from waiting for what has just failed. Safe to share between threads.

    After a failure calls are refused at once for a pause; then one is let through, and its outcome closes the breaker
    or makes the pause longer. No more than `most` calls are under way at a time, so a hang holds no more threads.
    """

    def __init__(
        self, first_s: float, longest_s: float, most: int, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._backoff, self._most = Backoff(first_s, longest_s, monotonic), most
        self._lock = threading.Lock()
        self._under_way = 0
        self._open = False

    @property
    def open(self) -> bool:
        """Whether the latest call failed."""
        return self._open

    @contextmanager
    def guard(self, failure: type[Exception]) -> Iterator[None]:
        """Let the block run, or raise Refused. `failure` raised by it opens the breaker; anything else closes it."""
        with self._lock:
            if self._open and (pause := self._backoff.pause_s) > 0:
                raise Refused(f"it failed a moment ago and is asked again in {pause:.0f} s")
            if self._under_way >= (1 if self._open else self._most):
                raise Refused(f"{self._under_way} are waiting for its answer already")
            self._under_way += 1
        failed = False
        try:
            yield
        except failure:
            failed = True
            raise
        finally:
            with self._lock:
                self._under_way -= 1
            self.note(failed)

    def note(self, failed: bool) -> None:
        """What came of a call that was made beside it."""
        with self._lock:
            self._open = failed
            if failed:
                self._backoff.failed()
            else:
                self._backoff.reset()
