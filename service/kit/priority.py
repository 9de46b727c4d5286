"""A thread that can wait gives way to those that somebody waits for."""

import os
import sys
import threading

NICE = 5  # a third of the weight; a thread that holds the interpreter's lock must still get on when cores are few


def give_way() -> None:
    """Lower the calling thread's priority, for good: raising it again would need a privilege. Linux only."""
    if sys.platform == "linux":  # elsewhere a priority is the whole process's
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
