"""What a test may not read, although tests often run as root."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

linux = pytest.mark.skipif(sys.platform != "linux", reason="capabilities and /proc are Linux's")


@contextmanager
def as_anybody() -> Iterator[None]:
    """This thread without the right to read whatever it likes, which root has."""
    library = ctypes.CDLL(None, use_errno=True)
    header, held = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert library.capget(header, held) == 0
    less = (ctypes.c_uint32 * 6)(*held)
    less[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, of those in effect
    assert library.capset(header, less) == 0
    try:
        yield
    finally:
        assert library.capset(header, held) == 0


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """A file or folder that this thread has no right to."""
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        with as_anybody():
            yield
    finally:
        path.chmod(mode)
