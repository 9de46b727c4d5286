"""Refuses at the door: after a request's head and before its body, a task, a log line or a look at its key.

A refusal in the application costs four times as much (docs/decisions/0029), and at five times the load there are four
of them for each answer.
"""

from collections.abc import Callable, Mapping

import orjson

from service.errors import Unavailable
from service.http.admission import REFUSAL, House, kind_of, retry_after
from service.http.problems import MEDIA_TYPE
from service.http.protocol import PatientProtocol
from service.http.request_context import request_id_of
from service.http.security_headers import ALWAYS, NO_PAGE

_BODY = {
    "type": f"urn:adaptide:problem:{Unavailable.slug}",
    "title": Unavailable.title,
    "status": Unavailable.status,
    "detail": REFUSAL,
    "slug": Unavailable.slug,
    "request_id": "#",
    "errors": [],
}
_BEFORE, _AFTER = orjson.dumps(_BODY).split(b"#")
_HEAD = "\r\n".join(
    (
        "HTTP/1.1 503 Service Unavailable",
        *(f"{name}: {value}" for name, value in (ALWAYS | NO_PAGE).items()),  # as the middleware has them
        f"content-type: {MEDIA_TYPE}",
    )
).encode()


def door(houses: Mapping[str, House], draining: Callable[[], bool]) -> type[PatientProtocol]:
    """The server's protocol, which answers 503 itself where the house that a request wants to enter refuses it."""

    class Door(PatientProtocol):
        _refused = False  # the request whose body may be coming

        def on_headers_complete(self) -> None:
            self._refused = self._refuses()
            if not self._refused:
                super().on_headers_complete()
                return
            self.head_is_whole()
            keep = self.parser.should_keep_alive() and self.parser.get_http_version() == "1.1" and not draining()
            self.transport.write(_refusal(request_id_of(self.scope).encode(), keep=keep))
            self._unset_keepalive_if_required()
            self.was_answered()
            if not keep:
                self.transport.close()
                return
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

        def on_body(self, body: bytes) -> None:
            if not self._refused:
                super().on_body(body)

        def on_message_complete(self) -> None:
            if not self._refused:
                super().on_message_complete()

        def _refuses(self) -> bool:
            """What is out of the ordinary goes to the application, which has the same rule."""
            if self.cycle is not None and not self.cycle.response_complete:  # replies have an order
                return False
            if self.flow.write_paused or self.expect_100_continue or self.parser.should_upgrade():
                return False
            kind = kind_of(self.url.partition(b"?")[0].decode("latin-1"))
            return kind is not None and houses[kind].refuses()

    return Door


def _refusal(request_id: bytes, *, keep: bool) -> bytes:
    body = b"".join((_BEFORE, request_id, _AFTER))
    own = (
        b"\r\nretry-after: %d\r\nx-request-id: " % retry_after(),
        request_id,
        b"" if keep else b"\r\nconnection: close",
        b"\r\ncontent-length: %d\r\n\r\n" % len(body),
    )
    return b"".join((_HEAD, *own, body))
