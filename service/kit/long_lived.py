"""Keeping the cycle collector away from what stays: modules, the model, the catalogue."""

import gc
import threading

_once = threading.Lock()


def leave_out_of_collections() -> None:
    """What is there now is looked at by no later collection; asked again, nothing happens.

    With torch loaded a full collection walks half a million objects and holds every thread up for .3 s, again and again
    under load (docs/results/reliability.md, scenario 15). Once only: cycles of a model replaced later have to be
    found.
    """
    if _once.acquire(blocking=False):
        gc.collect()
        gc.freeze()
