"""Files that are either wholly there or not there: hashed, fsynced, published by rename."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.kit.ids import uuid7


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
def publish_folder(target: Path) -> Iterator[Path]:
    """A staging folder beside `target` that is fsynced and renamed to it when the block ends without an error.

    Raises FileExistsError when `target` exists already: a published folder is never replaced.
    """
    if target.exists():
        raise FileExistsError(f"{target} is already published")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.parent / f".staging-{uuid7()}"
    staging.mkdir()
    try:
        yield staging
        for path in sorted(staging.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
            fsync_path(path)
        fsync_path(staging)
        staging.rename(target)  # fails when target appeared meanwhile and is not empty
        fsync_path(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
