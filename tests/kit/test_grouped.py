"""What waits together is done together, and each caller gets its own outcome."""

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from service.errors import StoreUnavailable, Unavailable
from service.kit.grouped import Grouped

Made = Callable[..., Grouped[int, int]]


class Doubler:
    """Doubles numbers while its gate is open; a negative one cannot be done; `away`: nothing can."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.gate = threading.Event()
        self.away = False

    def __call__(self, calls: Sequence[int]) -> list[int]:
        self.groups.append(list(calls))
        assert self.gate.wait(10)
        if self.away:
            raise StoreUnavailable("away")
        if any(call < 0 for call in calls):
            raise ValueError("negative")
        return [2 * call for call in calls]


@pytest.fixture
def doubler() -> Doubler:
    return Doubler()


@pytest.fixture
def made(doubler: Doubler) -> Iterator[Made]:
    running: list[Grouped[int, int]] = []

    def make(most: int = 8, max_queued: int = 8) -> Grouped[int, int]:
        running.append(Grouped("doubler", doubler, most=most, max_queued=max_queued))
        return running[-1]

    yield make
    doubler.gate.set()
    for grouped in running:
        grouped.stop()


def test_calls_that_wait_are_done_together_up_to_the_most(made: Made, doubler: Doubler) -> None:
    grouped = made(most=3)
    futures = [grouped.ask(number) for number in range(4)]
    doubler.gate.set()
    grouped.start()
    assert [future.result(10) for future in futures] == [0, 2, 4, 6]
    assert doubler.groups == [[0, 1, 2], [3]]


def test_a_call_that_cannot_be_done_fails_alone(made: Made, doubler: Doubler) -> None:
    grouped = made()
    good, bad, other = (grouped.ask(number) for number in (1, -1, 2))
    doubler.gate.set()
    grouped.start()
    assert (good.result(10), other.result(10)) == (2, 4)
    with pytest.raises(ValueError, match="negative"):
        bad.result(10)
    assert grouped.ask(3).result(10) == 6


def test_without_the_store_all_of_a_group_fail_at_once(made: Made, doubler: Doubler) -> None:
    grouped = made()
    futures = [grouped.ask(number) for number in (1, 2)]
    doubler.away = True
    doubler.gate.set()
    grouped.start()
    for future in futures:
        with pytest.raises(StoreUnavailable):
            future.result(10)
    assert doubler.groups == [[1, 2]]


def test_a_cancelled_call_is_not_done_and_too_many_are_refused(made: Made, doubler: Doubler) -> None:
    grouped = made(max_queued=2)
    dropped, kept = grouped.ask(1), grouped.ask(2)
    with pytest.raises(Unavailable, match="too many"):
        grouped.ask(3)
    assert dropped.cancel()
    doubler.gate.set()
    grouped.start()
    assert kept.result(10) == 4
    assert doubler.groups == [[2]]


def test_stopping_does_what_waits_and_takes_nothing_more(made: Made, doubler: Doubler) -> None:
    grouped = made()
    waiting = grouped.ask(1)
    doubler.gate.set()
    grouped.start()
    grouped.stop()
    assert waiting.result(0) == 2
    with pytest.raises(Unavailable, match="stopping"):
        grouped.ask(2)
