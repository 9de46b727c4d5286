"""APScheduler is a ticker only: one tick at a time, none made up for later, and what fails is tried at the next."""

import itertools
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from service.errors import StoreUnavailable
from service.windows.repository import Window
from tests.worlds import eventually
from trainer import schedule
from trainer.progress import Report


def tick_while(meddle: Callable[[], object], tick: Callable[[Report], Window | None], interval: timedelta) -> None:
    """The real schedule, until `meddle`, which runs beside it, has ended. Raises what that raises."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def meddle_and_end() -> None:
        try:
            meddle()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with ThreadPoolExecutor(1) as aside:
            meddling = aside.submit(meddle_and_end)
            schedule.run(tick, interval)
            meddling.result()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_tick_that_takes_long_is_alone_and_nothing_is_made_up_for_it() -> None:
    spans: list[tuple[float, float]] = []

    def tick(_: Report) -> None:
        began = time.monotonic()
        time.sleep(0.4)  # eight times as long as the interval
        spans.append((began, time.monotonic()))

    tick_while(lambda: eventually(lambda: len(spans) >= 4, 60), tick, timedelta(seconds=0.05))
    assert all(began >= ended for (_, ended), (began, _) in itertools.pairwise(spans))
    assert len(spans) <= 6


def test_a_tick_that_fails_does_not_end_the_ticking() -> None:
    ticks: list[int] = []

    def tick(_: Report) -> None:
        ticks.append(len(ticks))
        raise StoreUnavailable("the database did not answer")

    tick_while(lambda: eventually(lambda: len(ticks) >= 3, 60), tick, timedelta(seconds=0.05))


def test_work_is_told_to_stop_through_its_report() -> None:
    ended: list[bool] = []

    def tick(report: Report) -> None:
        while True:
            try:
                report("fit", 1, 2)
            except Exception:
                ended.append(True)
                raise
            time.sleep(0.01)

    tick_while(lambda: time.sleep(0.5), tick, timedelta(seconds=0.05))
    assert ended == [True]
