"""Logs through structlog and metrics in a Prometheus registry of our own."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from service.errors import ConfigurationError

REGISTRY = CollectorRegistry()
"""Every metric of this process; names start with adaptide_."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

ProcessCollector(namespace="adaptide", registry=REGISTRY)

REQUEST_SECONDS = Histogram(
    "adaptide_http_request_seconds",
    "Time from a request's first byte to its reply's last, by route template.",
    ["method", "route", "status"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
REQUESTS_IN_FLIGHT = Gauge("adaptide_http_requests_in_flight", "Requests being answered.", registry=REGISTRY)
UNEXPECTED_ERRORS = Counter("adaptide_unexpected_errors_total", "Defects answered with 500.", registry=REGISTRY)
EVENTS = Counter("adaptide_events_total", "Events received, by what came of them.", ["outcome"], registry=REGISTRY)
INGEST_SECONDS = Histogram(
    "adaptide_event_batch_seconds", "Time to store one batch durably.", buckets=_SECONDS, registry=REGISTRY
)
ITEM_WRITES = Counter("adaptide_item_writes_total", "Items written, by what changed.", ["outcome"], registry=REGISTRY)
ACTIVATIONS = Counter("adaptide_activations_total", "Models put into service, or not.", ["outcome"], registry=REGISTRY)
for _outcome in ("ok", "degraded", "failed"):
    ACTIVATIONS.labels(_outcome)  # from 0 on, so that the first failure is an increase
ACTIVATION_SECONDS = Histogram(
    "adaptide_activation_seconds",
    "Time to verify, load and warm a model beside the one in service.",
    buckets=(*_SECONDS, 30.0, 120.0),
    registry=REGISTRY,
)
RECOMMENDATIONS = Counter(
    "adaptide_recommendations_total",
    "Recommendations, by strategy and reason for falling back.",
    ["strategy", "fallback_reason"],
    registry=REGISTRY,
)
BATCH_SIZE = Histogram(
    "adaptide_generation_batch_requests",
    "Requests generated together.",
    buckets=(1, 2, 4, 8, 16, 32, 64),
    registry=REGISTRY,
)
SERVED_REVISION = Gauge(
    "adaptide_served_revision", "Revision of the pointer that this replica serves.", registry=REGISTRY
)

REDIS_UP = Gauge(
    "adaptide_redis_up", "1: Redis is used. 0: the breaker is open and everything goes on without.", registry=REGISTRY
)
REDIS_ERRORS = Counter("adaptide_redis_errors_total", "Calls of Redis that failed.", registry=REGISTRY)
CACHE = Counter(
    "adaptide_cache_total", "Look-ups in Redis, by what came of them.", ["cache", "outcome"], registry=REGISTRY
)
RATE_LIMITED = Counter("adaptide_rate_limited_total", "Requests refused with 429.", registry=REGISTRY)


def configure_logging(level: str, *, json: bool | None = None) -> None:
    """Send structlog's and the standard library's logs to standard error in one format.

    `json`: one object a line; None takes it unless standard error is a terminal. Raises ConfigurationError for an
    unknown level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ConfigurationError(f"ADAPTIDE_LOG_LEVEL={level} is unknown; use DEBUG, INFO, WARNING or ERROR")
    if json is None:
        json = not sys.stderr.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    final: list[structlog.typing.Processor]
    if json:
        final = [structlog.processors.format_exc_info, structlog.processors.EventRenamer("event"), _render_json]
    else:
        # Not rich's tracebacks: they print local variables, so payloads and keys.
        plain = structlog.dev.plain_traceback
        final = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final]
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(number)
    for noisy in ("alembic", "httpx", "httpx2", "httpcore", "httpcore2", "asyncio"):
        logging.getLogger(noisy).setLevel(max(number, logging.WARNING))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # tests configure more than once
    )


def _render_json(_logger: object, _name: str, entry: MutableMapping[str, Any]) -> str:
    # A log line is never lost to what it says: what JSON cannot carry is written as its repr.
    try:
        return orjson.dumps(entry, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:
        return orjson.dumps({key: ascii(value) for key, value in entry.items()}).decode()
