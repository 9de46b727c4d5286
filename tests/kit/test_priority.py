"""Giving way concerns one thread."""

import os
import sys
import threading

import pytest

from service.kit.priority import give_way


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
def test_a_thread_that_gives_way_is_the_only_one_that_does() -> None:
    found: list[int] = []

    def other() -> None:
        before = os.getpriority(os.PRIO_PROCESS, 0)
        give_way()
        found.extend((before, os.getpriority(os.PRIO_PROCESS, 0)))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()

    assert found[1] > found[0] == os.getpriority(os.PRIO_PROCESS, 0)
