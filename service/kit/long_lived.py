"""Keeping the cycle collector away from what stays: modules, the model, the catalogue; and from looking too often."""

import gc
import threading

YOUNG = 10_000
"""Objects that are made and not yet gone, until they are looked at (Python's own 700 are those of a few requests)."""

_once = threading.Lock()


def leave_out_of_collections() -> None:
    """What is there now is looked at by no later collection; asked again, nothing happens.

    With torch loaded a full collection walks half a million objects and holds every thread up for .3 s, again and again
    under load (docs/results/reliability.md, scenario 15); and what is made later is looked at less often. Once only:
    cycles of a model replaced later have to be found.
    """
    if _once.acquire(blocking=False):
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
