"""uvicorn's HTTP/1.1 with the limits that it lacks: on a request's head, on waiting for one, on connections.

A body is limited in size and time by service/http/body_limit.py; docker/haproxy.cfg has what a balancer does.
"""

import asyncio
import resource
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEAD_S = 10.0
"""A head has to be whole this long after the connection was made or after its first byte."""
URL_BYTES, HEAD_BYTES, HEAD_FIELDS = 16 * 1024, 64 * 1024, 100
PIPELINED = 16
"""Requests that a client may send ahead of their replies."""
SPARE_DESCRIPTORS = 256
"""Of the process's limit: for the store, Redis, artifacts and listeners."""
MOST_CONNECTIONS = 8192

log = structlog.get_logger(__name__)


def connection_limit() -> int:
    """How many connections a process holds before one that waits for its client has to go for each new one."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if soft < 0 else max(64, min(MOST_CONNECTIONS, soft - SPARE_DESCRIPTORS))


class PatientProtocol(HttpToolsProtocol):
    """One connection. Who keeps us waiting longest is the first to go, so that health is answered under any flood."""

    limit = connection_limit()
    waiting: "dict[PatientProtocol, None]" = {}  # noqa: RUF012  # all connections' own: who waits for the client, oldest first

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = False
        self._held = 0  # bytes of a head that the parser may hold without having said so
        self._size = self._fields = 0  # of the head, as far as it was parsed
        self._status = 400

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own signature
        super().connection_made(transport)
        if len(self.connections) > self.limit and self.waiting:
            oldest = next(iter(self.waiting))
            del self.waiting[oldest]
            oldest.transport.abort()
            log.warning("connection_ended_to_make_room", connections=len(self.connections))
        self.waiting[self] = None
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self.waiting.pop(self, None)
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        began_before = self._in_head
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head:
            self._held += len(data) if began_before else 0
            if self._held > HEAD_BYTES:
                self._status = 431
                self.send_400_response("The request's head is too large.")
                return
        if self.cycle is None or self.cycle.response_complete:  # a head, or a body that was answered unread
            self._start_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._held = self._size = self._fields = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > URL_BYTES:
            self._status = 414
            raise ValueError("the address is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._size += len(name) + len(value)
        self._fields += 1
        if self._size > HEAD_BYTES or self._fields > HEAD_FIELDS:  # trailers after a body count as well
            self._status = 431
            raise ValueError("the head is too large")

    def on_headers_complete(self) -> None:
        self.head_is_whole()
        super().on_headers_complete()
        if len(self.pipeline) > PIPELINED:
            self._status = 429
            raise ValueError("too many requests ahead of their replies")

    def head_is_whole(self) -> None:
        self._in_head = False
        self._stop_timer()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.waiting.pop(self, None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.pipeline and not self.transport.is_closing():
            self.waiting.pop(self, None)
            self.waiting[self] = None

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, with the status that fits; after a reply has begun the connection just ends."""
        if self.cycle is not None and not self.cycle.response_complete and self.cycle.response_started:
            self.transport.abort()
            return
        body = msg.encode("ascii")
        head = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[self._status] + head + body)
        self.transport.close()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_S, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            if self._in_head:
                self._status = 408
                self.send_400_response("The request's head did not come in time.")
            self.transport.close()
