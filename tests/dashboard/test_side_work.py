"""Work for pages: done once, kept, never waited for longer than the page can."""

import threading
from collections.abc import Iterator

import pytest

from service.dashboard.side_work import MOST_QUEUED, SideWork
from service.errors import Conflict, StoreUnavailable, Unavailable


@pytest.fixture
def work() -> Iterator[SideWork]:
    work = SideWork()
    work.start()
    yield work
    work.stop()


def test_what_is_fresh_is_not_made_again(work: SideWork) -> None:
    made: list[int] = []

    def make() -> int:
        made.append(1)
        return len(made)

    for _ in range(3):
        assert work.ask("k", make, fresh_s=60, wait_s=10).value == 1
    assert work.ask("k", make, fresh_s=-1, wait_s=10).value == 2
    assert work.ask("other", make, fresh_s=60, wait_s=10).value == 3


def test_a_page_does_not_wait_for_long_work_and_gets_what_was_there_before(work: SideWork) -> None:
    go = threading.Event()
    assert work.ask("k", lambda: "old", fresh_s=-1, wait_s=10).value == "old"

    def slow() -> str:
        go.wait(30)
        return "new"

    piece = work.ask("k", slow, fresh_s=-1, wait_s=0)
    assert (piece.value, piece.waiting) == ("old", True)
    go.set()
    assert work.ask("k", slow, fresh_s=-1, wait_s=10).value == "new"


def test_a_failure_is_kept_with_its_reason_and_the_thread_lives_on(work: SideWork) -> None:
    def refuse() -> None:
        raise Conflict("it is so")

    def crash() -> None:
        raise ZeroDivisionError

    def away() -> None:
        raise StoreUnavailable("password=secret")

    assert work.ask("a", refuse, fresh_s=60, wait_s=10).error == "it is so"
    assert "ZeroDivisionError" in str(work.ask("b", crash, fresh_s=60, wait_s=10).error)
    assert "secret" not in str(work.ask("c", away, fresh_s=60, wait_s=10).error)
    assert work.ask("d", lambda: 1, fresh_s=60, wait_s=10).value == 1


def test_a_failure_leaves_what_was_made_before(work: SideWork) -> None:
    def refuse() -> str:
        raise Conflict("not now")

    assert work.ask("k", lambda: "old", fresh_s=-1, wait_s=10).value == "old"
    for _ in range(2):
        piece = work.ask("k", refuse, fresh_s=-1, wait_s=10)
        assert (piece.value, piece.error) == ("old", "not now")
    piece = work.ask("k", lambda: "new", fresh_s=-1, wait_s=10)
    assert (piece.value, piece.error) == ("new", None)


def test_of_what_is_done_alone_a_second_is_refused_until_the_first_has_ended(work: SideWork) -> None:
    go = threading.Event()
    work.ask("one", lambda: go.wait(30), fresh_s=-1, wait_s=0, alone="count")
    for key in ("one", "two"):
        with pytest.raises(Unavailable, match="another count runs"):
            work.ask(key, lambda: True, fresh_s=-1, wait_s=0, alone="count")
    go.set()
    assert work.ask("else", lambda: 1, fresh_s=-1, wait_s=10).value == 1
    assert "ZeroDivisionError" in str(work.ask("two", lambda: 1 // 0, fresh_s=-1, wait_s=10, alone="count").error)
    assert work.ask("three", lambda: 3, fresh_s=-1, wait_s=10, alone="count").value == 3


def test_a_failure_is_tried_again_before_long() -> None:
    now = [0.0]
    work = SideWork(lambda: now[0])
    work.start()
    tries: list[int] = []

    def fail() -> None:
        tries.append(1)
        raise Conflict("not yet")

    for at, times in ((0.0, 1), (9.0, 1), (11.0, 2)):
        now[0] = at
        work.ask("k", fail, fresh_s=1e9, wait_s=10)
        assert len(tries) == times
    work.stop()


def test_too_much_at_once_is_refused(work: SideWork) -> None:
    go = threading.Event()
    begun = threading.Event()

    def slow() -> None:
        begun.set()
        go.wait(30)

    work.ask("first", slow, fresh_s=60, wait_s=0)
    assert begun.wait(10)
    for n in range(MOST_QUEUED):
        work.ask(n, lambda: None, fresh_s=60, wait_s=0)
    with pytest.raises(Unavailable):
        work.ask("one more", lambda: None, fresh_s=60, wait_s=0)
    go.set()
    assert work.ask(0, lambda: None, fresh_s=60, wait_s=10).error is None


def test_who_waits_at_the_end_is_let_go() -> None:
    work = SideWork()
    go, begun = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        go.wait(30)

    work.start()
    work.ask("k", slow, fresh_s=60, wait_s=0)
    assert begun.wait(10)
    stopper = threading.Thread(target=work.stop)
    stopper.start()
    go.set()
    stopper.join(10)
    with pytest.raises(Unavailable):
        work.ask("later", lambda: None, fresh_s=60, wait_s=0)
