"""A collector of OpenTelemetry traces on the loopback: it takes OTLP over HTTP and keeps what it was sent."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector:
    """`hang`: while it is set, requests wait and get no reply."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[bytes] = []
        self.hang = threading.Event()
        self.released = threading.Event()

    @property
    def spans(self) -> list[Any]:
        """Every span that came, as protobuf, in the order of arrival."""
        exported = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        return [
            span
            for one in exported
            for resource in one.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def services(self) -> set[str]:
        exported = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        return {attributes(resource.resource)["service.name"] for one in exported for resource in one.resource_spans}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that answers while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if collector.hang.is_set():
                collector.released.wait(60)
            collector.bodies.append(body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        collector.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def attributes(of: Any) -> dict[str, Any]:
    """Attributes of a span or a resource."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in of.attributes}
