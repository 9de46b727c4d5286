"""Events in the background: taken one by one, sent many at once, and again until the server has them."""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from service.client.encoding import encode
from service.client.errors import ApiError, InvalidRequest, PayloadTooLarge
from service.client.models import Event
from service.client.retries import Retries
from service.client.synchronous import Client

MOST_EVENTS, MOST_BYTES = 500, 900_000
"""Of one request: the API takes 500 events and 1 MiB."""
_PAUSES = Retries(attempts=2**31, first_s=0.2, longest_s=30.0, most_wait_s=float("inf"))
_log = logging.getLogger("adaptide.client")


class Full(Exception):
    """The buffer is full and stayed so for as long as `add` was to wait; the event was not taken."""


@dataclass(slots=True)
class _Waiting:
    event: Event
    size: int


class EventBatcher:
    """Takes events from any thread and sends them from one of its own.

    An event that `add` has taken is sent until the server has answered for it, through restarts and refusals for load;
    it has one id for ever (Event makes it), so one that arrives twice is counted once. Rejected events, which no other
    attempt would help, go to on_rejected. The buffer is in memory: what is in it when the process is killed is lost.
    """

    def __init__(
        self,
        client: Client,
        *,
        linger: float = 1.0,
        batch: int = MOST_EVENTS,
        capacity: int = 10_000,
        when_full: Literal["wait", "drop"] = "wait",
        on_rejected: Callable[[Event, str, str], None] | None = None,
    ) -> None:
        """linger: seconds that an event waits for others. batch: events that are sent at once, without waiting longer.

        capacity: events in the buffer, with those on their way. when_full: `wait` for room (back-pressure), or `drop`
        the new event and count it. on_rejected(event, code, detail): called in the batcher's thread; logged otherwise.
        """
        if not 1 <= batch <= MOST_EVENTS or capacity < batch:
            raise ValueError(f"batch is 1 to {MOST_EVENTS}, and capacity at least that")
        self._client, self._linger, self._batch, self._capacity = client, linger, batch, capacity
        self._when_full, self._on_rejected = when_full, on_rejected or _logged
        self._buffer: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._oldest = 0.0
        self._taken = self._settled = self._flush_through = 0
        self._closing = self._abandoned = False
        self.dropped = 0
        """Events that were refused for want of room."""
        self._thread = threading.Thread(target=self._run, name="adaptide-events", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if left := self.close():
            _log.error("%d events could not be sent and are dropped; call close() yourself to keep them", len(left))

    @property
    def pending(self) -> int:
        """Events that were taken and not answered for yet."""
        with self._changed:
            return self._taken - self._settled

    def add(self, event: Event, timeout: float | None = None) -> bool:
        """Take an event; False when there was no room and `when_full` is drop.

        Raises Full when there was none for `timeout` seconds (None: waits as long as it takes), RuntimeError after
        close, ValueError for a time without a zone, properties that are no JSON or text that is no Unicode (a lone
        surrogate).
        """
        size = _size(event)
        with self._changed:
            if not self._has_room() and self._when_full == "drop" and not self._closing:
                self.dropped += 1
                return False
            if not self._changed.wait_for(lambda: self._has_room() or self._closing, timeout):
                raise Full(f"{self._capacity:,} events wait to be sent already; is the server away?")
            if self._closing:
                raise RuntimeError("the batcher is closed")
            if not self._buffer:
                self._oldest = time.monotonic()
            self._buffer.append(_Waiting(event, size))
            self._taken += 1
            if len(self._buffer) in (1, self._batch):
                self._changed.notify_all()
            return True

    def flush(self, timeout: float | None = None) -> bool:
        """Send what was taken before, now, and wait until the server has answered for it; whether it has."""
        with self._changed:
            through = self._flush_through = self._taken
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._settled >= through, timeout)

    def close(self, timeout: float | None = 30.0) -> list[Event]:
        """Take no more, flush for up to `timeout` seconds, and return the events that are left, for you to keep.

        One of them may have been stored all the same; sending it again counts nothing twice.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self.flush(timeout)
        with self._changed:
            self._abandoned = True
            left = [waiting.event for waiting in self._buffer]
            self._changed.notify_all()
        if not left:
            self._thread.join()
        return left

    def _has_room(self) -> bool:
        return len(self._buffer) < self._capacity

    def _run(self) -> None:
        while (events := self._next()) is not None:
            self._deliver(events)
            with self._changed:
                # Only now: until the server has answered, they are what is left.
                for _ in events:
                    self._buffer.popleft()
                self._settled += len(events)
                self._oldest = time.monotonic()
                self._changed.notify_all()

    def _next(self) -> list[Event] | None:
        """The next events to send, once it is time; None after the last."""
        with self._changed:
            while True:
                if self._abandoned or (self._closing and not self._buffer):
                    return None
                due = self._oldest + self._linger - time.monotonic() if self._buffer else None
                if self._buffer and (due is None or due <= 0 or self._full_batch() or self._hurried()):
                    return self._head()
                self._changed.wait(due)

    def _full_batch(self) -> bool:
        return len(self._buffer) >= self._batch

    def _hurried(self) -> bool:
        return self._closing or self._settled < self._flush_through

    def _head(self) -> list[Event]:
        events: list[Event] = []
        size = 0
        for waiting in self._buffer:
            size += waiting.size
            if events and (len(events) == self._batch or size > MOST_BYTES):
                break
            events.append(waiting.event)
        return events

    def _deliver(self, events: Sequence[Event]) -> None:
        """Send until it is answered or the batcher is abandoned."""
        attempt = 1
        while not self._abandoned:
            try:
                report = self._client.send_events(events)
                rejected = [(events[one.index], one.code, one.detail) for one in report.rejected]
            except (InvalidRequest, PayloadTooLarge) as error:  # none of the others should suffer for one
                if len(events) == 1:
                    self._reject(events[0], error.slug, error.detail)
                else:
                    middle = len(events) // 2
                    self._deliver(events[:middle])
                    self._deliver(events[middle:])
                return
            except Exception as error:  # of any kind: a thread that ended here would lose all that comes later
                sendable = [event for event in events if self._is_sendable(event)]
                if len(sendable) < len(events):
                    if sendable:
                        self._deliver(sendable)
                    return
                told = error.retry_after if isinstance(error, ApiError) else None
                _log.warning("events wait to be sent: %s: %s", type(error).__name__, error)
                self._sleep(_PAUSES.pause(min(attempt, 20), told) or 0.0)
                attempt += 1
            else:
                for event, code, detail in rejected:
                    self._reject(event, code, detail)
                return

    def _is_sendable(self, event: Event) -> bool:
        """Whether it is what `add` took: its properties may have been changed since, which rejects it."""
        try:
            _size(event)
        except ValueError as error:
            self._reject(event, "invalid_event", str(error))
            return False
        return True

    def _reject(self, event: Event, code: str, detail: str) -> None:
        try:
            self._on_rejected(event, code, detail)
        except Exception:
            _log.exception("on_rejected failed")

    def _sleep(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned, seconds)


def _size(event: Event) -> int:
    """Bytes of its JSON and a comma. Raises ValueError for what has none."""
    try:
        return len(json.dumps(encode(event), allow_nan=False, ensure_ascii=False).encode()) + 1
    except (TypeError, RecursionError) as error:
        raise ValueError(f"the event is no JSON: {error}") from error


def _logged(event: Event, code: str, detail: str) -> None:
    about: Mapping[str, Any] = {"event_id": event.event_id, "code": code, "detail": detail}
    _log.error("an event was rejected: %s", about)
