"""OpenTelemetry traces, where ADAPTIDE_TRACES asks for them. Off, its SDK is not imported and nothing is done.

Spans carry names, identifiers of requests and windows, outcomes and times: no path, body, key or user id. Where they go
and which are kept, the standard OTEL_ variables say.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import structlog

from service.errors import ConfigurationError
from service.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

GRACE_S = 2.0
"""A stop waits so long for a collector; what it has not taken by then is dropped."""
A = TypeVar("A")
R = TypeVar("R")
Attributes = Mapping[str, str | int | bool]
Say = Callable[[Attributes], None]
"""Adds attributes to a span that is open."""


class Traces(Protocol):
    """Where spans go; start() and stop() once each."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def span(self, name: str, attributes: Attributes = ...) -> AbstractContextManager[Say]:
        """A span around the block, below the one that is open here. Lines logged meanwhile have its trace_id."""
        ...

    def follow(self, name: str) -> Callable[[Future[Any]], None] | None:
        """What to call with a future that was just made: its span lasts until there is a result. None: nothing."""
        ...


class NoTraces:
    """Traces that are off."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def span(self, name: str, attributes: Attributes = {}) -> AbstractContextManager[Say]:  # noqa: B006
        return _NOTHING

    def follow(self, name: str) -> None:
        return None


_NOTHING: AbstractContextManager[Say] = nullcontext(lambda attributes: None)
NO_TRACES = NoTraces()


class OpenTelemetryTraces:
    """Traces over OTLP/HTTP, in batches by a thread of their own: nothing waits for the collector."""

    def __init__(self, part: str) -> None:
        """part: of service.name, unless OTEL_SERVICE_NAME is set. Needs the extra `otel`."""
        self._part = part
        self._tracer: Tracer | None = None
        self._exporter: SpanExporter | None = None
        self._end: Callable[[], None] = lambda: None

    def start(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # It would say for each span that it was dropped; that a batch did not arrive is said once a batch.
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": f"adaptide-{self._part}"}
        provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self._exporter = OTLPSpanExporter()
        provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._end = provider.shutdown
        self._tracer = provider.get_tracer("adaptide")

    def stop(self) -> None:
        """Send what waits, for GRACE_S at most."""
        self._tracer = None
        ending = threading.Thread(target=self._end, name="traces-end", daemon=True)
        ending.start()
        ending.join(GRACE_S)
        if ending.is_alive() and self._exporter is not None:
            self._exporter.shutdown()  # what is tried again and again is given up

    @contextmanager
    def span(self, name: str, attributes: Attributes = {}, *, parent: "Context | None" = None) -> Iterator[Say]:  # noqa: B006
        if self._tracer is None:
            yield lambda _attributes: None
            return
        # An exception's text may hold anything, so it is not recorded.
        with self._tracer.start_as_current_span(
            name, parent, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            trace_id = f"{span.get_span_context().trace_id:032x}"
            with structlog.contextvars.bound_contextvars(trace_id=trace_id):
                try:
                    yield span.set_attributes
                except BaseException as error:
                    failed(span, type(error).__name__)
                    raise

    def follow(self, name: str) -> Callable[[Future[Any]], None]:
        def begin(future: Future[Any]) -> None:
            if self._tracer is not None:
                span = self._tracer.start_span(name)
                future.add_done_callback(lambda done: _ended(span, done))

        return begin

    @contextmanager
    def request(self, headers: Mapping[str, str]) -> Iterator["Span | None"]:
        """The span of a request, which goes on with the trace that its `traceparent` names."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if self._tracer is None:
            yield None
            return
        above = TraceContextTextMapPropagator().extract(headers)
        with self._tracer.start_as_current_span(
            "request", above, SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        ) as span:
            with structlog.contextvars.bound_contextvars(trace_id=f"{span.get_span_context().trace_id:032x}"):
                yield span


def open_traces(settings: Settings, part: str) -> Traces:
    """The traces that `settings` ask for, not started. Raises ConfigurationError without the extra."""
    if not settings.traces:
        return NO_TRACES
    try:
        there = find_spec("opentelemetry.sdk") and find_spec("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:  # what the name lies in is not there, either
        there = None
    if there is None:
        raise ConfigurationError(
            "ADAPTIDE_TRACES=true needs OpenTelemetry: pip install -c constraints.txt '.[otel]', or unset it"
        )
    return OpenTelemetryTraces(part)


@contextmanager
def tracing(settings: Settings, part: str) -> Iterator[Traces]:
    """The traces that `settings` ask for, while the block runs."""
    traces = open_traces(settings, part)
    traces.start()
    try:
        yield traces
    finally:
        traces.stop()


def followed(traces: Traces, name: str, ask: Callable[[A], Future[R]]) -> Callable[[A], Future[R]]:
    """`ask`, whose futures are followed; `ask` itself where traces are off."""
    begin = traces.follow(name)
    if begin is None:
        return ask

    def asked(call: A) -> Future[R]:
        future = ask(call)
        begin(future)
        return future

    return asked


def _ended(span: "Span", done: Future[Any]) -> None:
    if done.cancelled():
        failed(span, "dropped")
    elif (error := done.exception()) is not None:
        failed(span, type(error).__name__)
    span.end()


def failed(span: "Span", why: str) -> None:
    """Give a span the status ERROR. why: a kind of failure, never its text."""
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", why)
    span.set_status(Status(StatusCode.ERROR))
