"""What a test may not read, although tests often run as root."""

import ctypes
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

R = TypeVar("R")
linux = pytest.mark.skipif(sys.platform != "linux", reason="capabilities and /proc are Linux's")


DAC = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


@contextmanager
def as_anybody() -> Iterator[None]:
    """This thread without the right to read whatever it likes, which root has."""
    held = _rights()
    _set_rights(_without(held, 0))
    try:
        yield
    finally:
        _set_rights(held)


def by_anybody(do: Callable[[], R]) -> R:
    """What `do` returns or raises in a thread that has given that right up for good, which access(2) asks for."""
    with ThreadPoolExecutor(1, initializer=lambda: _set_rights(_without(_rights(), 0, 1))) as anybody:
        return anybody.submit(do).result()


def _rights() -> Any:
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, and again for those above 31
    assert ctypes.CDLL(None).capget(_header(), held) == 0
    return held


def _set_rights(rights: Any) -> None:
    assert ctypes.CDLL(None).capset(_header(), rights) == 0


def _header() -> Any:
    return (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread


def _without(held: Any, *sets: int) -> Any:
    return (ctypes.c_uint32 * 6)(*(word & ~DAC if place in sets else word for place, word in enumerate(held)))


@contextmanager
def locked(path: Path, mode: int = 0) -> Iterator[None]:
    """A file or folder to which this thread has only the right of `mode`."""
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        with as_anybody():
            yield
    finally:
        path.chmod(before)
