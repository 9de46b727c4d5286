"""Fetched artifacts on this machine's disk: shared by its processes, bounded, the longest unused removed first.

root/<room>/<name>/...            an artifact as it was published
root/<room>/.lock-<name>          locked (shared) by whoever uses it; its time is that of the latest use
"""

import fcntl
import os
import shutil
import threading
import time
from pathlib import Path

import structlog

from service.errors import ArtifactUnreachable
from service.kit.files import is_staging, set_aside, stale_staging

log = structlog.get_logger(__name__)

SPARE_BYTES = 64 * 2**20  # left free on the disk, which other things share
ABANDONED_S = 3600  # a fetch that has not written for so long was killed
_LOCK = ".lock-"


class Hold:
    """Keeps one entry from being removed, by any process of this machine, for as long as this object lives."""

    def __init__(self, lock: Path) -> None:
        lock.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if _is_still(lock, descriptor):
                break
            os.close(descriptor)  # an eviction removed it between the two calls
        os.utime(descriptor)
        self._descriptor = descriptor

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)  # closing unlocks


class Cache:
    """The entries below one folder. Safe to share between threads and processes."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        """max_bytes: what the entries may take together; what is in use stays, even beyond it."""
        self.root, self.max_bytes = root, max_bytes
        self._evicting = threading.Lock()

    def path(self, room: str, name: str) -> Path:
        return self.root / room / name

    def hold(self, room: str, name: str) -> Hold:
        """Hold an entry that is there or is about to be. Raises ArtifactUnreachable when the folder cannot be used."""
        try:
            return Hold(self.root / room / f"{_LOCK}{name}")
        except OSError as error:
            raise ArtifactUnreachable(f"the cache {self.root} cannot be used: {error.strerror}") from error

    def discard(self, room: str, name: str) -> None:
        """Throw an entry away at once, used or not."""
        set_aside(self.path(room, name))

    def make_room(self, need: int) -> None:
        """Remove what has been unused for longest until `need` more bytes fit.

        Raises ArtifactUnreachable when they cannot: they exceed the whole cache, or the disk is full.
        """
        if need > self.max_bytes:
            raise ArtifactUnreachable(
                f"it takes {need} bytes and the cache holds {self.max_bytes}; raise ADAPTIDE_ARTIFACTS_CACHE_BYTES"
            )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with self._evicting:
                self._evict(need)
            free = shutil.disk_usage(self.root).free
        except OSError as error:
            raise ArtifactUnreachable(f"the cache {self.root} cannot be used: {error.strerror}") from error
        if free < need + SPARE_BYTES:
            raise ArtifactUnreachable(f"the disk of the cache {self.root} has {free} bytes left, {need} are needed")

    def _evict(self, need: int) -> None:
        entries = self._entries()
        held = sum(size for _, _, size in entries)
        for _, entry, size in sorted(entries, key=lambda found: found[0]):
            if held + need <= self.max_bytes:
                return
            if _remove_unused(entry):
                held -= size
                log.info("cache_entry_evicted", entry=entry.name, bytes=size)
        if held + need > self.max_bytes:
            log.warning("cache_over_its_size", bytes=held + need, max_bytes=self.max_bytes)

    def _entries(self) -> list[tuple[float, Path, int]]:
        """(latest use, folder, bytes) of every entry."""
        found = []
        for room in self.root.iterdir():
            for left in stale_staging(room, time.time() - ABANDONED_S):
                shutil.rmtree(left, ignore_errors=True)
            for entry in room.iterdir() if room.is_dir() else ():
                if entry.name.startswith(_LOCK) or is_staging(entry):
                    continue
                try:
                    size = sum(file.lstat().st_size for file in entry.rglob("*"))
                    found.append((_lock_of(entry).stat().st_mtime if _lock_of(entry).exists() else 0.0, entry, size))
                except FileNotFoundError:  # another process evicts too
                    continue
        return found


def _lock_of(entry: Path) -> Path:
    return entry.parent / f"{_LOCK}{entry.name}"


def _is_still(lock: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(lock.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_unused(entry: Path) -> bool:
    """Remove an entry unless somebody holds it."""
    lock = _lock_of(entry)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if not _is_still(lock, descriptor):
            return False
        set_aside(entry)
        lock.unlink()
        return True
    finally:
        os.close(descriptor)
