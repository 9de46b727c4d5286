"""Settings that are each allowed and do not go well together."""

from collections.abc import Iterator
from datetime import timedelta

from service.doctor.findings import Finding, ok, warning
from service.kit.machine import cores
from service.settings import Environment, Promote, Settings


def check_settings(settings: Settings) -> Iterator[Finding]:
    odd = list(_odd(settings))
    yield from (warning("settings", said, advice) for said, advice in odd)
    if not odd:
        yield ok("settings", f"{settings.environment.value}; none are at odds with one another")


def check_credit(settings: Settings) -> Iterator[Finding]:
    """Whether recommendations are kept until what was taken of them is counted (service.quality.folding)."""
    kept = settings.recommendation_retention or settings.event_retention
    if settings.quality_horizon is None or kept is None:
        return
    counted = settings.quality_horizon + settings.quality_bucket + settings.quality_lateness
    if kept <= counted:
        yield warning(
            "quality",
            f"recommendations are removed after {kept}, and counted up to {counted} after they were made "
            "(QUALITY_HORIZON, QUALITY_BUCKET and QUALITY_LATENESS together): what was taken of some is never counted",
            "raise ADAPTIDE_RECOMMENDATION_RETENTION, or lower ADAPTIDE_QUALITY_HORIZON",
        )


def _odd(s: Settings) -> Iterator[tuple[str, str]]:
    """(what is odd, what to do)."""
    sqlite = s.store_url.startswith("sqlite")
    if s.recommendation_cache and not s.redis_url.get_secret_value():
        yield "RECOMMENDATION_CACHE is set without REDIS_URL, and keeps nothing", "set ADAPTIDE_REDIS_URL, or leave it"
    if s.window_min_events > s.window_max_events:
        yield (
            "WINDOW_MIN_EVENTS is above WINDOW_MAX_EVENTS: no window is ever closed by its age",
            "lower ADAPTIDE_WINDOW_MIN_EVENTS",
        )
    if s.poll_interval > timedelta(seconds=1):
        yield (
            "POLL_INTERVAL is above a second: new items and adapters come that much later",
            "lower ADAPTIDE_POLL_INTERVAL, or use Redis, which tells replicas at once",
        )
    if s.queue_patience >= s.request_deadline:
        yield (
            "QUEUE_PATIENCE is not below REQUEST_DEADLINE: a queue is noticed after its requests have given up",
            "lower ADAPTIDE_QUEUE_PATIENCE",
        )
    if sqlite and s.environment is Environment.PRODUCTION:
        yield (
            "production on SQLite: one process on one machine, and its disk is the only copy",
            "set ADAPTIDE_DATABASE_URL to PostgreSQL for more than one replica",
        )
    if s.artifacts_remote is not None and not s.signing_key.get_secret_value():
        yield (
            "artifacts lie on an object store and are not signed: whoever writes there decides what is served",
            "set ADAPTIDE_SIGNING_KEY and run adaptide artifacts sign",
        )
    if s.threads > cores():
        yield f"THREADS is {s.threads} on {cores()} cores", "lower ADAPTIDE_THREADS, or leave it: 0 measures"
    if s.shard and s.processes == 1:
        yield "SHARD is set with one process, and does nothing", "raise ADAPTIDE_PROCESSES, or leave it"
    if s.promote is Promote.CANARY and s.rollback_automatic and s.quality_horizon is not None:
        counted = s.quality_horizon + s.quality_lateness + 2 * s.quality_bucket
        if s.canary_duration < counted:
            yield (
                f"a canary lasts {s.canary_duration}, and what its users did is counted from {counted} on: it is "
                "promoted before ROLLBACK_AUTOMATIC can end it",
                "raise ADAPTIDE_CANARY_DURATION, or lower ADAPTIDE_QUALITY_HORIZON",
            )
    kept = s.recommendation_retention or s.event_retention
    if s.event_retention is not None and kept is not None and kept > s.event_retention:
        yield (
            "recommendations are kept longer than the events behind them, so the oldest cannot be had again",
            "raise ADAPTIDE_EVENT_RETENTION, or take it as it is",
        )
    if s.window_max_age < s.tick_interval:
        yield "WINDOW_MAX_AGE is below TICK_INTERVAL, which decides then", "lower ADAPTIDE_TICK_INTERVAL"
