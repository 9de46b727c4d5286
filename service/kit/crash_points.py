"""Named places at which a test makes a process die, as kill -9 does, or pauses it, to see what is left behind.

Each is a call that does nothing unless ADAPTIDE_TEST_CRASH_AT names it, or ADAPTIDE_TEST_PAUSE_AT. Production refuses
to start with these variables.
"""

import os
import signal
import threading
from enum import StrEnum

VARIABLE = "ADAPTIDE_TEST_CRASH_AT"
PAUSE_VARIABLE = "ADAPTIDE_TEST_PAUSE_AT"


class CrashPoint(StrEnum):
    """In the order in which an update passes them; the last two lie beside it."""

    SEALED = "sealed"
    """The window's range is committed; nobody has claimed it."""
    CLAIMED = "claimed"
    FITTING = "fitting"
    """After an optimiser step."""
    CHECKPOINT_WRITTEN = "checkpoint-written"
    """Its files are there and not yet renamed into place."""
    CHECKPOINTED = "checkpointed"
    JUDGED = "judged"
    """The candidate passed or failed the gate; nothing of it is published."""
    ARTIFACT_WRITTEN = "artifact-written"
    """Its files are there and not yet renamed into place."""
    PUBLISHED = "published"
    """The folder is there; the store does not know of it."""
    CONCLUDING = "concluding"
    """In the transaction that registers, promotes and writes the outcome, before its commit."""
    CONCLUDED = "concluded"
    """Committed; no replica has been told, and the checkpoints are still there."""
    COLLECTING = "collecting"
    """Garbage is marked in the store and not yet deleted."""
    COUNTING = "counting"
    """Recommendations of a bucket are counted and not yet recorded."""


def crash_point(point: CrashPoint) -> None:
    """Die here, at once and without a word, or stop until SIGCONT comes, when the environment says so.

    The signal is this thread's: one to the process may stop another thread first, while this one goes on a little.
    """
    for variable, number in ((VARIABLE, signal.SIGKILL), (PAUSE_VARIABLE, signal.SIGSTOP)):
        if os.environ.get(variable) == point.value:
            signal.pthread_kill(threading.get_ident(), number)
