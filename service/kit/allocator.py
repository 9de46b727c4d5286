"""How this process and those it starts keep freed memory: the blocks of one step are those of the next."""

import ctypes
import os

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2  # malloc.h
_KEPT = {
    "MALLOC_MMAP_THRESHOLD_": (_MMAP_THRESHOLD, 32 << 20),  # glibc takes no more
    "MALLOC_TRIM_THRESHOLD_": (_TRIM_THRESHOLD, 256 << 20),
    "MALLOC_TOP_PAD_": (_TOP_PAD, 16 << 20),
}


def give_back_freed_memory() -> None:
    """Give the system what is free now; costs milliseconds. On another C library than glibc nothing happens."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


def keep_freed_memory() -> None:
    """Let glibc keep blocks up to 32 MiB, and up to 256 MiB in all, instead of giving each back to the system.

    Without it a training step takes some 1,500 page faults (docs/decisions/0009). What the environment sets stays; on
    another C library nothing happens.
    """
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # AttributeError: another C library
    except (OSError, AttributeError):
        return
    for name, (parameter, value) in _KEPT.items():
        if name not in os.environ:
            os.environ[name] = str(value)  # for processes that are started from here
            library.mallopt(parameter, value)
