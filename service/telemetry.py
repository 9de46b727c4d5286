"""Logs through structlog and metrics in a Prometheus registry of our own.

Names follow Prometheus: `adaptide_`, what is measured, the base unit (seconds, bytes), `_total` on counters. What each
one means is its description; docs/metrics.md is written from them (`python -m trainer.telemetry`).
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from service.errors import ConfigurationError
from service.kit.keys import redacted

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
EVENTS = Counter(
    "adaptide_events_total",
    "Events received, by what came of them; unknown_item: accepted ones whose item is not in the catalogue.",
    ["outcome"],
    registry=REGISTRY,
)
INGEST_SECONDS = Histogram(
    "adaptide_event_batch_seconds", "Time to store one batch durably.", buckets=_SECONDS, registry=REGISTRY
)
INTAKE_REQUESTS = Gauge(
    "adaptide_intake_requests", "Requests with events or items that are being read or stored.", registry=REGISTRY
)
INTAKE_BYTES = Gauge(
    "adaptide_intake_bytes", "Bytes of the bodies of those requests, as far as they have come.", registry=REGISTRY
)
INTAKE_REFUSED = Counter(
    "adaptide_intake_refused_requests_total",
    "Requests with events or items refused with 503: too many, too many bytes, or too slow a store.",
    ["reason"],
    registry=REGISTRY,
)
for _reason in ("requests", "bytes", "slow"):
    INTAKE_REFUSED.labels(_reason)  # from 0 on, as below
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
SHED = Counter(
    "adaptide_shed_requests_total",
    "Requests refused at the door: the queue stands, or too many came at once, or too many bytes of them.",
    ["kind", "reason"],
    registry=REGISTRY,
)
for _kind in ("recommendations", "others"):
    for _reason in ("queue", "burst"):
        SHED.labels(_kind, _reason)
SHED.labels("recommendations", "bytes")
SERVED_REVISION = Gauge(
    "adaptide_served_revision", "Revision of the pointer that this replica serves.", registry=REGISTRY
)
TRIAL_LOADED = Gauge("adaptide_trial_loaded", "1: this replica holds the candidate of a trial.", registry=REGISTRY)
TRIAL_FAILURES = Counter(
    "adaptide_trial_failures_total", "Times a candidate could not be loaded or could not answer.", registry=REGISTRY
)
TRIAL_REQUESTS = Counter(
    "adaptide_trial_requests_total", "Recommendations during a canary, by the user's arm.", ["arm"], registry=REGISTRY
)
for _arm in ("control", "canary"):
    TRIAL_REQUESTS.labels(_arm)
SHADOW_RANKINGS = Counter(
    "adaptide_shadow_rankings_total",
    "Requests picked for the shadow: stored; dropped under load; failed.",
    ["outcome"],
    registry=REGISTRY,
)
for _outcome in ("stored", "dropped", "failed"):
    SHADOW_RANKINGS.labels(_outcome)
WINDOWS_GIVEN_UP = Counter(
    "adaptide_windows_given_up_total", "Windows whose last attempt failed, by this updater.", registry=REGISTRY
)

QUALITY_RECOMMENDATIONS = Gauge(
    "adaptide_quality_recommendations",
    "Recommendations whose horizon is over, of the serving version, the one before it, and popular lists.",
    ["subject"],
    registry=REGISTRY,
)
QUALITY_HIT_RATE = Gauge(
    "adaptide_quality_hit_rate", "Share of them of which an item was taken.", ["subject"], registry=REGISTRY
)
QUALITY_GAIN = Gauge(
    "adaptide_quality_gain", "Position-discounted gain of a recommendation.", ["subject"], registry=REGISTRY
)
QUALITY_COVERAGE = Gauge(
    "adaptide_quality_coverage", "Share of the catalogue that was recommended.", ["subject"], registry=REGISTRY
)
QUALITY_NOVELTY = Gauge(
    "adaptide_quality_novelty_bits", "Mean surprise of a recommended item.", ["subject"], registry=REGISTRY
)
QUALITY_REPETITION = Gauge(
    "adaptide_quality_repetition",
    "Share of recommended items that the user was shown just before.",
    ["subject"],
    registry=REGISTRY,
)
QUALITY_COUNTED = Gauge(
    "adaptide_quality_counted_timestamp_seconds",
    "Recommendations made before it are counted (unix time).",
    registry=REGISTRY,
)
AUTOMATIC_ROLLBACKS = Counter(
    "adaptide_automatic_rollbacks_total", "Versions rolled back for their live hit rate.", registry=REGISTRY
)

DEGRADED = Gauge(
    "adaptide_serving_degraded", "1: something else serves than the active pointer names.", registry=REGISTRY
)
ARTIFACTS_UP = Gauge(
    "adaptide_artifacts_up", "1: the object store of artifacts answered when it was last asked.", registry=REGISTRY
)

REDIS_UP = Gauge(
    "adaptide_redis_up", "1: Redis is used. 0: the breaker is open and everything goes on without.", registry=REGISTRY
)
REDIS_ERRORS = Counter("adaptide_redis_errors_total", "Calls of Redis that failed.", registry=REGISTRY)
CACHE = Counter(
    "adaptide_cache_lookups_total", "Look-ups in Redis, by what came of them.", ["cache", "outcome"], registry=REGISTRY
)
RATE_LIMITED = Counter("adaptide_rate_limited_requests_total", "Requests refused with 429.", registry=REGISTRY)


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
    final.append(lambda _logger, _name, rendered: redacted(str(rendered)))
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
