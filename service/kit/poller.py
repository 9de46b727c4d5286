"""A background thread that runs one step again and again, sooner when told to, and never dies of a failed step."""

import threading
from collections.abc import Callable
from datetime import timedelta

import structlog

log = structlog.get_logger(__name__)


class Poller:
    """Runs `step` every `interval` on its own daemon thread; a step that raises is logged and tried again."""

    def __init__(self, name: str, interval: timedelta, step: Callable[[], object]) -> None:
        self._name = name
        self._interval_s = interval.total_seconds()
        self._step = step
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._failing = False

    @property
    def failing(self) -> bool:
        """Whether the latest step failed."""
        return self._failing

    def start(self) -> None:
        self._thread.start()

    def notify(self) -> None:
        """Run the next step now instead of at the end of the interval."""
        self._wake.set()

    def stop(self, wait_s: float = 10) -> None:
        """End after the step in progress, which is waited for so long at most."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=wait_s)

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                self._step()
                self._failing = False
            except Exception as error:  # the next step may well succeed: the store comes back, a file appears
                if not self._failing:
                    log.warning("background_step_failed", thread=self._name, error=f"{type(error).__name__}: {error}")
                self._failing = True
            self._wake.wait(self._interval_s)
