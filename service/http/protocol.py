"""uvicorn's HTTP/1.1 with the limits that it lacks: on heads, on waiting for them, on unread replies, on connections.

A body is limited in size and time by service/http/body_limit.py; docker/haproxy.cfg has what a balancer does.
"""

import asyncio
import resource
import socket
import struct
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

HEAD_S = 10.0
"""A head has to be whole this long after the connection was made or after its first byte."""
URL_BYTES, HEAD_BYTES, HEAD_FIELDS = 16 * 1024, 64 * 1024, 100
PIPELINED = 16
"""Requests that a client may send ahead of their replies."""
DRAIN_S = 20.0
"""A client has to take what the system does not hold for it so long after its latest reply: 1 MiB at 420 kbit/s."""
MOST_UNREAD = 32
"""Connections without a good key that may leave 64 KiB beyond that unread at the same time."""
SPARE_DESCRIPTORS = 256
"""Of the process's limit: for the store, Redis, artifacts and listeners."""
MOST_CONNECTIONS = 8192

log = structlog.get_logger(__name__)


def connection_limit() -> int:
    """How many connections a process holds before one that waits for its client has to go for each new one."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if soft < 0 else max(64, min(MOST_CONNECTIONS, soft - SPARE_DESCRIPTORS))


class Joining:
    """The connection as a reply writes to it: the head goes out with the first piece of the body, in one call.

    Each call is one of the system, and wakes the client once more: some 30 of 300 microseconds of a small reply.
    """

    def __init__(self, transport: asyncio.Transport, cycle: RequestResponseCycle) -> None:
        self._transport, self._cycle = transport, cycle
        self._head: bytes | None = None
        self._begun = False

    def write(self, data: bytes) -> None:
        if not self._begun and self._cycle.response_started:
            self._begun, self._head = True, data
        elif self._head is not None:
            head, self._head = self._head, None
            self._transport.write(head + data)
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """The head, of a reply that has no body."""
        if self._head is not None:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class PatientProtocol(HttpToolsProtocol):
    """One connection. Who keeps us waiting longest is the first to go, so that health is answered under any flood."""

    limit = connection_limit()
    waiting: "dict[PatientProtocol, None]" = {}  # noqa: RUF012  # all connections' own: who waits for the client, oldest first
    unread: "dict[PatientProtocol, None]" = {}  # noqa: RUF012  # likewise: strangers who do not read, oldest first

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = False
        self._held = 0  # bytes of a head that the parser may hold without having said so
        self._size = self._fields = 0  # of the head, as far as it was parsed
        self._status = 400
        self._drain_timer: asyncio.TimerHandle | None = None
        self._drains_from = 0.0  # the loop's time
        self._answering: RequestResponseCycle | None = None
        self._reply: Joining | None = None

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
        self.unread.pop(self, None)
        self._stop_timer()
        if self._answering is not None:  # uvicorn tells the latest request alone, which may wait behind this one
            self._answering.disconnected = True
            self._answering.message_event.set()
        if self._drain_timer is not None:
            self._drain_timer.cancel()
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
        elif self.cycle.more_body and not self._in_head:
            self.flow.pause_reading()  # until the application asks for more, which it may not do without a good key

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

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering, self._reply = cycle, Joining(self.transport, cycle)
        cycle.transport = self._reply  # type: ignore[assignment]  # it has all that a cycle uses
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        if self._reply is not None:
            self._reply.flush()
        if self._answering is not None:
            self._answering.body = bytearray()  # what came of a body that was answered unread
        super().on_response_complete()
        if not self.pipeline and not self.transport.is_closing():
            self.waiting.pop(self, None)
            self.waiting[self] = None
        self.was_answered()

    def was_answered(self) -> None:
        """What was written has to be read now."""
        self._drains_from = self.loop.time()
        if self._drain_timer is None and self in self.connections:
            self._drain_timer = self.loop.call_later(DRAIN_S, self._has_it_read)

    def _has_it_read(self) -> None:
        self._drain_timer = None
        left_s = self._drains_from + DRAIN_S - self.loop.time()
        if self.transport.get_write_buffer_size() == 0:
            return
        if left_s > 0:
            self._drain_timer = self.loop.call_later(left_s, self._has_it_read)
        else:
            self._end_unread()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.was_answered()
        if "principal" in self.scope.get("state", {}):  # of a good key (service/access/endpoints.py)
            return
        self.unread[self] = None
        if len(self.unread) > MOST_UNREAD:
            next(iter(self.unread))._end_unread()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.unread.pop(self, None)
        self.was_answered()

    def _end_unread(self) -> None:
        self.unread.pop(self, None)
        # Or the system would go on to offer what it holds.
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
        log.warning("unread_reply_ended", connections=len(self.connections))

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
