"""What failed is tried again ever more rarely, by one caller, and nobody waits for it meanwhile."""

import threading

import pytest

from service.kit.backoff import Backoff, Breaker, Refused


class Stopwatch:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_pauses_double_up_to_the_longest_and_end_with_a_success() -> None:
    stopwatch = Stopwatch()
    backoff = Backoff(1, 5, stopwatch)
    pauses = []
    for _ in range(5):
        backoff.failed()
        pauses.append(backoff.pause_s)
        stopwatch.now += pauses[-1]
        assert backoff.pause_s == 0
    assert pauses == [1, 2, 4, 5, 5]
    backoff.failed()
    backoff.reset()
    assert backoff.pause_s == 0


def fail(breaker: Breaker) -> None:
    with pytest.raises(OSError, match="away"), breaker.guard(OSError):
        raise OSError("away")


def test_after_a_failure_calls_are_refused_until_the_pause_is_over() -> None:
    stopwatch = Stopwatch()
    breaker = Breaker(1, 30, 8, stopwatch)
    fail(breaker)
    assert breaker.open
    with pytest.raises(Refused, match="asked again in 1 s"), breaker.guard(OSError):
        pytest.fail("it was let through")
    stopwatch.now += 1
    fail(breaker)
    stopwatch.now += 1
    with pytest.raises(Refused), breaker.guard(OSError):
        pytest.fail("the pause has grown")
    stopwatch.now += 1
    with breaker.guard(OSError):
        with pytest.raises(Refused, match="waiting"), breaker.guard(OSError):
            pytest.fail("one at a time while it is tried")
    assert not breaker.open
    with breaker.guard(OSError), breaker.guard(OSError):
        pass


def test_another_error_says_that_it_answers() -> None:
    breaker = Breaker(1, 30, 8, Stopwatch())
    with pytest.raises(KeyError), breaker.guard(OSError):
        raise KeyError("not there")
    assert not breaker.open
    fail(breaker)
    breaker.note(failed=False)
    with breaker.guard(OSError):
        pass


def test_no_more_callers_than_allowed_hang_together() -> None:
    breaker, over, inside = Breaker(1, 30, 2, Stopwatch()), threading.Event(), threading.Semaphore(0)

    def hang() -> None:
        with breaker.guard(OSError):
            inside.release()
            over.wait(20)

    threads = [threading.Thread(target=hang) for _ in range(2)]
    for thread in threads:
        thread.start()
        assert inside.acquire(timeout=20)
    with pytest.raises(Refused, match="2 are waiting"), breaker.guard(OSError):
        pytest.fail("a third one was let through")
    over.set()
    for thread in threads:
        thread.join()
    with breaker.guard(OSError):
        pass
