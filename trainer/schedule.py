"""The updater's clock: APScheduler as a ticker only. The truth about what is due lies in the store, under a lease."""

import logging
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog
from apscheduler.schedulers.background import BackgroundScheduler

from service.errors import AdaptideError
from service.windows.repository import Window
from trainer.progress import Report, Stopped
from trainer.telemetry import TICKED

log = structlog.get_logger(__name__)

UPKEEP_INTERVAL_S = 15
"""A million events, the least that a partition ahead has room for, take longer to come."""
CLOCK_SET_S = 0.5
"""A step of the machine's clock that is more than its usual correction."""


def run(tick: Callable[[Report], Window | None], interval: timedelta, *upkeep: Callable[[], None]) -> None:
    """Tick until SIGTERM or SIGINT. An update in progress is then left within a step; its window is taken up again.

    tick: raises through the report that it is given when it is to stop. upkeep: each called every 15 s beside the
    ticks, also while an update works. coalesce and max_instances = 1: a tick that comes while one works is dropped, and
    nothing is made up for later.
    """
    received: list[int] = []  # no Event: a handler that interrupts its wait() could find its lock taken
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: received.append(number))
    logging.getLogger("apscheduler").setLevel(logging.ERROR)  # else a line for each tick, and for each one dropped

    def report(step: str, done: int, total: int) -> None:
        if received:
            raise Stopped("the updater was stopped while it worked on this window")

    def look_for_work() -> None:
        if not received:  # else an attempt would be begun only to be left
            _tick(tick, report)

    scheduler = BackgroundScheduler(timezone="UTC")
    scheduler.add_job(
        look_for_work,
        "interval",
        seconds=interval.total_seconds(),
        coalesce=True,
        max_instances=1,
        misfire_grace_time=None,
    )
    for keep in upkeep:
        scheduler.add_job(
            keep,
            "interval",
            seconds=UPKEEP_INTERVAL_S,
            next_run_time=datetime.now(UTC),
            coalesce=True,
            max_instances=1,
            misfire_grace_time=None,
        )
    scheduler.start()
    log.info("updater_started", tick_seconds=interval.total_seconds())
    ahead = time.time() - time.monotonic()
    while not received:
        time.sleep(0.2)  # not for ever: the kernel may give the signal to another thread, and only this one handles it
        moved = time.time() - time.monotonic() - ahead
        # APScheduler plans by the machine's clock: set back an hour, it would wait for one.
        if abs(moved) > CLOCK_SET_S:
            ahead += moved
            for job in scheduler.get_jobs():
                job.modify(next_run_time=datetime.now(UTC))
            log.warning("clock_was_set", seconds=round(moved, 1))
    scheduler.shutdown(wait=True)
    log.info("updater_stopped")


def _tick(tick: Callable[[Report], Window | None], report: Report) -> None:
    TICKED.set_to_current_time()
    try:
        window = tick(report)
    except AdaptideError as error:  # the store is away or a writer was slow: the next tick tries again
        log.warning("tick_failed", reason=error.detail)
        return
    if window is not None:
        log.info("window_done", window_id=window.window_id, verdict=window.verdict, reason=window.reason)
