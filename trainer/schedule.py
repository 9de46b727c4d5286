"""The updater's clock: APScheduler as a ticker only. The truth about what is due lies in the store, under a lease."""

import logging
import signal
import threading
from datetime import timedelta

import structlog
from apscheduler.schedulers.background import BackgroundScheduler

from service.errors import AdaptideError, Unavailable
from service.windows.repository import Window
from trainer.progress import Report
from trainer.updater import Updater

log = structlog.get_logger(__name__)


def run(updater: Updater, interval: timedelta) -> None:
    """Tick until SIGTERM or SIGINT. An update in progress is then left within a step; its window is taken up again.

    coalesce and max_instances = 1: a tick that comes while one works is dropped, and nothing is made up for later.
    """
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: ended.set())
    logging.getLogger("apscheduler").setLevel(logging.ERROR)  # else a line for each tick, and for each one dropped

    def report(step: str, done: int, total: int) -> None:
        if ended.is_set():
            raise Unavailable("the updater was stopped while it worked on this window")

    scheduler = BackgroundScheduler(timezone="UTC")
    scheduler.add_job(
        _tick,
        "interval",
        args=[updater, report],
        seconds=interval.total_seconds(),
        coalesce=True,
        max_instances=1,
        misfire_grace_time=None,
    )
    scheduler.start()
    log.info("updater_started", tick_seconds=interval.total_seconds())
    ended.wait()
    scheduler.shutdown(wait=True)
    log.info("updater_stopped")


def _tick(updater: Updater, report: Report) -> None:
    try:
        window: Window | None = updater.tick(report)
    except AdaptideError as error:  # the store is away or a writer was slow: the next tick tries again
        log.warning("tick_failed", reason=error.detail)
        return
    if window is not None:
        log.info("window_done", window_id=window.window_id, verdict=window.verdict, reason=window.reason)
