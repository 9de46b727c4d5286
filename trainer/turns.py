"""Timing ways of doing one thing in turns, so that whatever else the machine does falls on all of them."""

import time
from collections.abc import Callable, Sequence


def in_turns(ways: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Seconds of each way in each repeat, after one turn that is not counted."""
    times: list[list[float]] = [[] for _ in ways]
    for turn in range(repeats + 1):
        for way, own in zip(ways, times, strict=True):
            started = time.perf_counter()
            way()
            if turn:
                own.append(time.perf_counter() - started)
    return times
