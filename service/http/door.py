"""Refuses at the door: after a request's head and before its body, a task, a log line or a look at its key.

A refusal in the application costs four times as much (docs/decisions/0029), and at five times the load there are four
of them for each answer. An ordinary request that has come whole is not even parsed.
"""

import re
from collections.abc import Callable, Mapping

import orjson

from service.errors import Unavailable
from service.http.admission import RECOMMENDATIONS, REFUSAL, House, kind_of, retry_after
from service.http.problems import MEDIA_TYPE
from service.http.protocol import PatientProtocol
from service.http.request_context import request_id_of
from service.http.security_headers import ALWAYS, NO_PAGE
from service.kit.ids import uuid7

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
_OTHER_FIELDS = (
    rb"(?:(?!content-length|transfer-encoding|connection|expect|upgrade|x-request-id)[\w-]++: [ -~]*+\r\n"
    rb"|connection: keep-alive\r\n)*+"
)
_ORDINARY = re.compile(
    rb"(?:GET|POST) (/v1/[\w./~-]++) HTTP/1\.1\r\n(?i:%s(?:content-length: (\d{1,6})\r\n)?%s)\r\n"
    % (_OTHER_FIELDS, _OTHER_FIELDS)
)
"""A head that leaves no doubt about its message's end and asks nothing of the connection. Groups: path, length."""


def door(houses: Mapping[str, House], draining: Callable[[], bool]) -> type[PatientProtocol]:
    """The server's protocol, which answers 503 itself where the house that a request wants to enter refuses it."""

    class Door(PatientProtocol):
        _refused = False  # the request whose body may be coming
        _between = True  # what comes next is a message's first byte

        def data_received(self, data: bytes) -> None:
            if self._between and houses[RECOMMENDATIONS].is_full and self._refuses_unparsed(data):
                self._refuse(uuid7(), keep=not draining())
            else:
                super().data_received(data)

        def on_message_begin(self) -> None:
            self._between = False
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            ordinary = not (self.expect_100_continue or self.parser.should_upgrade())
            path = self.url.partition(b"?")[0]
            self._refused = ordinary and self._refuses(path)
            if not self._refused:
                super().on_headers_complete()
                if (kind := kind_of(path.decode("latin-1"))) is not None:
                    houses[kind].expect()
                return
            keep = self.parser.should_keep_alive() and self.parser.get_http_version() == "1.1" and not draining()
            self._refuse(request_id_of(self.scope), keep=keep)

        def on_body(self, body: bytes) -> None:
            if not self._refused:
                super().on_body(body)

        def on_message_complete(self) -> None:
            self._between = True
            if not self._refused:
                super().on_message_complete()

        def _refuses_unparsed(self, data: bytes) -> bool:
            """Of an ordinary request that is all of `data`."""
            found = _ORDINARY.match(data)
            return found is not None and found.end() + int(found[2] or 0) == len(data) and self._refuses(found[1])

        def _refuses(self, path: bytes) -> bool:
            """What is out of the ordinary goes to the application, which has the same rule."""
            if self.flow.write_paused:
                return False
            if self.cycle is not None and not self.cycle.response_complete:  # replies have an order
                return False
            kind = kind_of(path.decode("latin-1"))
            return kind is not None and houses[kind].refuses(expected=True)

        def _refuse(self, request_id: str, *, keep: bool) -> None:
            self.head_is_whole()
            self.transport.write(_refusal(request_id.encode(), keep=keep))
            self._unset_keepalive_if_required()
            self.was_answered()
            if not keep:
                self.transport.close()
                return
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

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
