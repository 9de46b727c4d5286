"""Clocks that are wrong, set, or go over to summer time: no window is skipped or doubled, nobody waits for an hour."""

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine

from service.kit.clock import Clock, utc_now
from service.kit.db import Database
from service.kit.lease_keeper import held
from service.settings import Settings
from service.windows import service
from service.windows.repository import Window
from service.windows.service import UPDATER_LEASE, Outcome
from service.windows.states import SealedBecause, WindowState
from tests.chaos.scenarios import sized
from tests.chaos.test_windows import assert_each_event_in_one_window, windows_of
from tests.leases import set_clock
from tests.trainer.test_schedule import tick_while
from tests.windows.streams import write_events
from tests.worlds import eventually
from trainer.progress import Report

HOUR = timedelta(hours=1)


class Ticker:
    """An updater without a model: what is due is sealed and claimed, and every window ends without a change."""

    def __init__(self, database: Database, settings: Settings, clock: Clock, owner: str) -> None:
        self.database, self.settings, self.clock, self.owner = database, settings, clock, owner

    def tick(self, _: Report | None = None) -> Window | None:
        with held(self.database, UPDATER_LEASE, self.owner, self.settings.lease_duration) as lease:
            if lease is None:
                return None
            if (because := service.due(self.database, self.clock, self.settings)) is not None:
                service.seal(self.database, self.clock, self.settings, because, lease=lease)
            window = service.claim(self.database, self.clock, self.settings, lease)
            if window is not None:
                service.conclude(
                    self.database,
                    self.clock,
                    None,  # type: ignore[arg-type]  # there is no candidate to verify
                    window.window_id,
                    lease,
                    Outcome(WindowState.NO_CHANGE),
                )
            return window


@pytest.mark.scenario(24)
def test_updaters_whose_clocks_are_an_hour_apart_skip_and_double_no_window(
    database: Database, tmp_path: Path, figures: dict[str, Any]
) -> None:
    """Three take turns, their clocks right, an hour ahead and an hour behind; the store's is set, too."""
    settings = Settings(home=tmp_path, window_max_age=timedelta(minutes=10), window_min_events=1)
    now = [datetime(2026, 3, 1, 12, tzinfo=UTC)]
    offsets = (timedelta(0), HOUR, -HOUR)
    tickers = [Ticker(database, settings, lambda o=o: now[0] + o, f"updater{o}") for o in offsets]  # type: ignore[misc]
    worked = 0
    for turn in range(sized(60, 600)):
        write_events(database, 2, now[0] + offsets[turn % 2])
        worked += tickers[turn % 3].tick() is not None
        if turn % 7 == 0:
            set_clock(database, HOUR if turn % 2 else -HOUR)
        now[0] += timedelta(minutes=2)
    now[0] += 3 * HOUR
    worked += tickers[0].tick() is not None

    found = windows_of(database)
    assert_each_event_in_one_window(database, found)
    assert [window.attempts for window in found] == [1] * len(found)
    assert {window.state for window in found} == {WindowState.NO_CHANGE}
    assert worked == len(found) > 5
    figures |= {"dialect": database.dialect, "windows": len(found), "skipped": 0, "doubled": 0}


@pytest.mark.scenario(24)
@pytest.mark.parametrize("change", ["spring", "autumn"])
def test_daylight_saving_time_is_nobodys_business(
    database: Database, tmp_path: Path, change: str, figures: dict[str, Any]
) -> None:
    """Four hours around each change in Berlin, a window for about every ten minutes."""
    settings = Settings(home=tmp_path, window_max_age=timedelta(minutes=10), window_min_events=1)
    start = datetime(2026, 3, 28, 23, tzinfo=UTC) if change == "spring" else datetime(2026, 10, 24, 23, tzinfo=UTC)
    step = timedelta(minutes=sized(5, 1))
    ticks, worked = 4 * HOUR // step, []
    with zone("Europe/Berlin"), time_machine.travel(start, tick=False) as traveller:
        ticker = Ticker(database, settings, utc_now, "updater")
        for _ in range(ticks):
            write_events(database, 1, utc_now())
            if (window := ticker.tick()) is not None:
                worked.append(window.sealed_at)
            traveller.shift(step)
    assert_each_event_in_one_window(database, [*windows_of(database), *_rest(database)])
    apart = {later - earlier for earlier, later in itertools.pairwise(worked)}
    assert apart == {settings.window_max_age + step}  # the age after the first event of each
    assert len(worked) == ticks // (settings.window_max_age // step + 1)
    figures |= {"dialect": database.dialect, "change": change, "windows": len(worked), "skipped": 0, "doubled": 0}


def _rest(database: Database) -> list[Window]:
    window = service.seal(database, utc_now, Settings(), SealedBecause.MANUAL)
    return [] if window is None else [window]


@contextmanager
def zone(name: str) -> Iterator[None]:
    """The process's local time, as the operating system has it."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = name
    time.tzset()
    try:
        yield
    finally:
        os.environ.pop("TZ")
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()


@pytest.mark.scenario(24)
def test_ticks_go_on_when_the_machines_clock_is_set(figures: dict[str, Any]) -> None:
    """The real schedule; set back by an hour it must not wait for one, set forward it makes nothing up."""
    ticks: list[float] = []

    def meddle(traveller: time_machine.Traveller) -> None:
        for hours in (-1, 1, 1, -1, 0):
            seen = len(ticks)
            eventually(lambda seen=seen: len(ticks) > seen + 2, 30)  # type: ignore[misc]
            traveller.shift(timedelta(hours=hours))

    with time_machine.travel(datetime.now(UTC), tick=True) as traveller:
        tick_while(lambda: meddle(traveller), lambda _: ticks.append(time.monotonic()), timedelta(seconds=0.2))
    longest = max(later - earlier for earlier, later in itertools.pairwise(ticks))
    assert longest < 30  # where it took an hour
    figures |= {"set_by_an_hour": 4, "longest_pause_s": round(longest, 2)}
