"""Gives each request an identifier, a log context, an access log line and a place in the latency metrics."""

import re
import time
from collections.abc import Mapping
from typing import Any

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.kit.ids import uuid7
from service.kit.keys import redacted
from service.telemetry import REQUEST_SECONDS, REQUESTS_IN_FLIGHT

_ACCEPTABLE = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"})
_PROBES = ("/health/live", "/health/ready", "/health/serving", "/health/startup", "/metrics")
_REFRESHED = ("now", "registry", "windows/part", "windows/{window_id}/part", "static/{address:path}")
_QUIET = frozenset({*_PROBES, *(f"/dashboard/{part}" for part in _REFRESHED)})
"""Routes that machines ask every few seconds, an open page of the dashboard among them."""

log = structlog.get_logger(__name__)


class RequestContextMiddleware:
    """X-Request-ID is taken over when it is 1-64 of A-Z a-z 0-9 . _ -, otherwise made; every reply carries it.

    The access log names the route's template, not the path: paths hold user ids.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 499  # the client went away before a reply began

        async def with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        started = time.perf_counter()
        REQUESTS_IN_FLIGHT.inc()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, with_id)
            finally:
                seconds = time.perf_counter() - started
                REQUESTS_IN_FLIGHT.dec()
                method = scope["method"] if scope["method"] in _METHODS else "OTHER"
                route = getattr(scope.get("route"), "path", "unmatched")
                REQUEST_SECONDS.labels(method, route, status).observe(seconds)
                write = log.debug if route in _QUIET else log.info
                write("request_served", method=method, route=route, status=status, ms=round(seconds * 1000, 2))


def request_id_of(scope: Mapping[str, Any]) -> str:
    """The client's X-Request-ID where it is acceptable, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ACCEPTABLE.fullmatch(value):
            given = value.decode("ascii")
            return given if redacted(given) == given else uuid7()  # a key there would be in every log line
    return uuid7()
