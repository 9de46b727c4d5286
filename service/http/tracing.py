"""One server span for each request, where traces are on (service.tracing)."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.tracing import OpenTelemetryTraces, failed

_QUIET = ("/health/", "/metrics")
_HEADERS = (b"traceparent", b"tracestate")


class TracingMiddleware:
    """Around RequestContextMiddleware, so that its line has the trace_id.

    A span is named by the route's template and has method, status and request id. Not opentelemetry's own middleware
    for ASGI: it records paths, queries and client addresses, which hold user ids.
    """

    def __init__(self, app: ASGIApp, traces: OpenTelemetryTraces) -> None:
        self.app, self.traces = app, traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_QUIET):
            await self.app(scope, receive, send)
            return
        status = 499  # the client went away before a reply began

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _HEADERS}
        with self.traces.request(headers) as span:
            try:
                await self.app(scope, receive, watched)
            finally:
                if span is not None:
                    route = getattr(scope.get("route"), "path", "unmatched")
                    span.update_name(f"{scope['method']} {route}")
                    span.set_attributes(
                        {
                            "http.request.method": scope["method"],
                            "http.route": route,
                            "http.response.status_code": status,
                            "adaptide.request_id": scope.get("state", {}).get("request_id", ""),
                        }
                    )
                    if status >= 500:
                        failed(span, str(status))
