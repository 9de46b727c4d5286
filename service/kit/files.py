"""Files that are either wholly there or not there: hashed, fsynced, published by rename."""

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.kit.ids import uuid7

_STAGING = ".staging-"


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Flush a file's or folder's bytes to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """The file `path`, made if need be, is this process's alone until the block ends or the process does.

    Raises BlockingIOError while it is another's, OSError where it cannot be made.
    """
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextmanager
def publish_folder(target: Path) -> Iterator[Path]:
    """A staging folder beside `target` that is fsynced and renamed to it when the block ends without an error.

    Raises FileExistsError when `target` exists already: a published folder is never replaced.
    """
    if target.exists():
        raise FileExistsError(f"{target} is already published")
    target.parent.mkdir(parents=True, exist_ok=True)
    with staging_beside(target) as staging:
        yield staging
        for path in sorted(staging.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
            fsync_path(path)
        fsync_path(staging)
        staging.rename(target)  # fails when target appeared meanwhile and is not empty
        fsync_path(target.parent)


@contextmanager
def staging_beside(target: Path) -> Iterator[Path]:
    """A staging folder on the disk of `target`, removed when the block ends unless it was renamed."""
    staging = target.parent / f"{_STAGING}{uuid7()}"
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """An empty file beside `path`, its owner's alone, that becomes `path` when the block ends without an error.

    Raises FileExistsError when there is something already, which is never replaced, and OSError.
    """
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    with staging_beside(path) as staging:
        file = staging / path.name
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        yield file
        fsync_path(file)
        _place(file, path)
        fsync_path(path.parent)


def unwritten(path: Path, error: OSError) -> str:
    """That `path` cannot be written, why, and what to do."""
    if isinstance(error, FileExistsError):
        return f"{path} is there already; name a new file"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = "make room there, or name a file on another disk" if full else "name a new file in a folder of yours"
    return f"{path} cannot be written: {error.strerror or error}; {advice}"


def _place(file: Path, path: Path) -> None:
    try:
        os.link(file, path)  # unlike a rename it never replaces a file that came meanwhile
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        file.rename(path)  # a file system without links


def is_staging(path: Path) -> bool:
    """Whether `path` is a folder being written or removed, or what a killed process left of one."""
    return path.name.startswith(_STAGING)


def set_aside(folder: Path) -> None:
    """Remove a folder that others may be looking at: it is gone at once and whole, then its files are deleted.

    A folder that is not there is removed already. What a kill leaves is a staging folder.
    """
    staging = folder.parent / f"{_STAGING}{uuid7()}"
    try:
        folder.rename(staging)
    except FileNotFoundError:
        return
    shutil.rmtree(staging, ignore_errors=True)


def stale_staging(parent: Path, before: float) -> list[Path]:
    """Staging folders below `parent` nothing in which was written since `before` (seconds since 1970)."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if is_staging(path) and newest_write(path) < before)


def newest_write(folder: Path) -> float:
    """When anything in a folder was written last, in seconds since 1970; 0 when it has gone."""
    newest = 0.0
    for path in (folder, *folder.rglob("*")):
        try:
            newest = max(newest, path.lstat().st_mtime)
        except FileNotFoundError:
            continue
    return newest
