"""A background step is run again and again, whatever it does, until it is told to stop."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from service.kit.poller import Poller
from tests.worlds import eventually

SOON, NEVER = timedelta(seconds=0.005), timedelta(hours=1)


class Step:
    """Counts its runs; fails in those that `failing` names (from 1)."""

    def __init__(self, failing: Callable[[int], bool] = lambda run: False) -> None:
        self.runs = 0
        self._failing = failing
        self._ran = threading.Condition()

    def __call__(self) -> None:
        with self._ran:
            self.runs += 1
            self._ran.notify_all()
        if self._failing(self.runs):
            raise RuntimeError("the store is away")

    def wait_for(self, runs: int) -> None:
        with self._ran:
            assert self._ran.wait_for(lambda: self.runs >= runs, timeout=5), f"ran {self.runs} times, not {runs}"


Start = Callable[[timedelta, Step], Poller]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a poller that ends with the test."""
    started: list[Poller] = []

    def start(interval: timedelta, step: Step) -> Poller:
        started.append(Poller("test", interval, step))
        started[-1].start()
        return started[-1]

    yield start
    for poller in started:
        poller.stop()


def test_a_step_runs_at_once_and_then_in_every_interval(start: Start) -> None:
    step = Step()
    start(SOON, step)
    step.wait_for(5)


def test_a_notification_ends_the_wait(start: Start) -> None:
    step = Step()
    poller = start(NEVER, step)
    for run in (1, 2, 3):
        step.wait_for(run)
        poller.notify()
    step.wait_for(4)


def test_a_notification_during_a_step_makes_it_run_once_more(start: Start) -> None:
    entered, leave, runs = threading.Event(), threading.Event(), Step()

    class Slow(Step):
        def __call__(self) -> None:
            runs()
            entered.set()
            assert leave.wait(5)

    poller = start(NEVER, Slow())
    assert entered.wait(5)
    poller.notify()
    leave.set()
    runs.wait_for(2)


def test_a_failing_step_is_tried_again_and_says_so_until_it_succeeds(start: Start) -> None:
    step = Step(failing=lambda run: run <= 3)
    poller = start(NEVER, step)
    for run in (1, 2, 3):
        step.wait_for(run)
        eventually(lambda: poller.failing)
        poller.notify()
    step.wait_for(4)
    eventually(lambda: not poller.failing)


def test_stop_ends_a_long_wait_and_nothing_runs_afterwards(start: Start) -> None:
    step = Step()
    poller = start(NEVER, step)
    step.wait_for(1)
    poller.stop()
    poller.notify()
    assert not [thread for thread in threading.enumerate() if thread.name == "test"]
    assert step.runs == 1


def test_stop_waits_for_the_step_in_progress(start: Start) -> None:
    entered, leave, left = threading.Event(), threading.Event(), threading.Event()

    class Slow(Step):
        def __call__(self) -> None:
            entered.set()
            assert leave.wait(5)
            left.set()

    poller = start(NEVER, Slow())
    assert entered.wait(5)
    threading.Timer(0.05, leave.set).start()
    poller.stop()
    assert left.is_set()


def test_a_poller_that_was_never_started_can_be_stopped() -> None:
    Poller("test", SOON, Step()).stop()
