"""Metrics of an updater, beside those of service.telemetry, on a port of their own."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from service.errors import ConfigurationError
from service.telemetry import REGISTRY
from service.windows.states import OUTCOMES, WindowState

WINDOWS = Counter("adaptide_windows_total", "Attempts at windows, by how they ended.", ["verdict"], registry=REGISTRY)
LEFT = "left"
"""Verdict of an attempt that another updater took over."""
for _verdict in (*OUTCOMES, WindowState.FAILED, LEFT):
    WINDOWS.labels(_verdict)  # from 0 on, so that the first failure is an increase
UPDATE_SECONDS = Histogram(
    "adaptide_update_seconds",
    "Time from claiming a window to its outcome.",
    buckets=(1, 5, 15, 60, 300, 900, 3600, 14_400),
    registry=REGISTRY,
)
WORKING = Gauge("adaptide_updater_working", "1 while this updater works on a window.", registry=REGISTRY)
TICKED = Gauge(
    "adaptide_updater_tick_timestamp_seconds", "When this updater last looked for work (unix time).", registry=REGISTRY
)


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
