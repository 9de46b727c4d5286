"""Metrics of an updater, beside those of service.telemetry, on a port of their own; prints the table of both."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from service.errors import ConfigurationError
from service.telemetry import REGISTRY
from service.windows.states import OUTCOMES, WindowState
from trainer.examples import Examples
from trainer.streams import WindowStreams

WINDOWS = Counter("adaptide_windows_total", "Attempts at windows, by how they ended.", ["verdict"], registry=REGISTRY)
LEFT = "left"
"""Verdict of an attempt that another updater took over."""
for _verdict in (*OUTCOMES, WindowState.FAILED, LEFT):
    WINDOWS.labels(_verdict)  # from 0 on, so that the first failure is an increase
INTERACTIONS = Counter(
    "adaptide_window_interactions_total",
    "Interactions in windows that were worked on: all, of suspected bots, and targets left out above a user's cap.",
    ["kind"],
    registry=REGISTRY,
)
for _kind in ("all", "suspected_bot", "capped"):
    INTERACTIONS.labels(_kind)
UPDATE_SECONDS = Histogram(
    "adaptide_update_seconds",
    "Time from claiming a window to its outcome.",
    buckets=(1, 5, 15, 60, 300, 900, 3600, 14_400),
    registry=REGISTRY,
)
SILENT = Counter(
    "adaptide_updates_silent_total",
    "Updates that showed no progress for ADAPTIDE_UPDATE_SILENCE and lost their window to whoever is next.",
    registry=REGISTRY,
)
WORKING = Gauge("adaptide_updater_working", "1 while this updater works on a window.", registry=REGISTRY)
TICKED = Gauge(
    "adaptide_updater_tick_timestamp_seconds", "When this updater last looked for work (unix time).", registry=REGISTRY
)


def count_interactions(data: WindowStreams, examples: Examples) -> None:
    """Of one attempt at a window."""
    INTERACTIONS.labels("all").inc(data.events)
    INTERACTIONS.labels("suspected_bot").inc(data.suspect_events)
    INTERACTIONS.labels("capped").inc(examples.capped_targets)


@contextmanager
def shown(host: str, port: int) -> Iterator[None]:
    """/metrics on `port` while the block runs; nothing for 0. Raises ConfigurationError when it cannot be bound."""
    if not port:
        yield
        return
    try:
        server, thread = start_http_server(port, addr=host, registry=REGISTRY)
    except OSError as error:
        raise ConfigurationError(
            f"port {port} on {host} cannot be bound ({error.strerror}): choose another ADAPTIDE_TRAINER_PORT"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def metrics_page() -> str:
    """docs/metrics.md, whole: every metric that an API process or an updater shows."""
    import service.app  # noqa: F401  # metrics of parts that keep theirs beside their code join the registry

    rows = []
    for collector in REGISTRY._collector_to_names:  # no public way asks for labels
        labels = ", ".join(f"`{label}`" for label in getattr(collector, "_labelnames", ()))
        there = "updater" if any(collector is ours for ours in globals().values()) else "API, updater"
        for metric in collector.describe() if hasattr(collector, "describe") else collector.collect():
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            meaning = metric.documentation.replace("|", "\\|")
            rows.append((name, f"| `{name}` | {metric.type} | {labels} | {there} | {meaning} |"))
    return PAGE + "\n".join(row for _, row in sorted(rows)) + "\n"


PAGE = """# Metrics

What `/metrics` shows in the format of Prometheus: of an API process at its port, of an updater at
`ADAPTIDE_TRAINER_PORT`. What a process does not do stays at 0, or has no series yet. A histogram has `_bucket`, `_sum`
and `_count`. Alerts on them: [operate.md](operate.md). Written by `python -m trainer.telemetry > docs/metrics.md`.

| metric | type | labels | shown by | meaning |
|---|---|---|---|---|
"""

if __name__ == "__main__":
    sys.stdout.write(metrics_page())
