"""A folder and the manifest that lists every byte of it. Reading never follows a link and never leaves the folder."""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from service.errors import ArtifactError, ArtifactMissing, ArtifactUnreachable

MANIFEST = "manifest.json"
MAX_FILES = 256
MAX_MANIFEST_BYTES = 4 * 2**20
_CHUNK = 2**20
_HEX64 = re.compile(r"[0-9a-f]{64}")
# What is in a folder can cause these, for whoever reads it. Any other is this machine's trouble, or this moment's.
_ITS_OWN = {errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENXIO, errno.ENODEV}
_FILES = "raise the limit on open files (ulimit -n), or see what keeps so many open"
_RIGHTS = "give this user the right to read it"
_ADVICE = {errno.EMFILE: _FILES, errno.ENFILE: _FILES, errno.EACCES: _RIGHTS, errno.EPERM: _RIGHTS}


class Kind(StrEnum):
    BASE = "base"
    ADAPTER = "adapter"


@dataclass(frozen=True, slots=True)
class FileEntry:
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a published folder holds: relative path -> bytes and hash, and free metadata."""

    kind: Kind
    files: dict[str, FileEntry]
    metadata: dict[str, Any]

    def encode(self) -> bytes:
        """Canonical JSON: the same content gives the same bytes, so its SHA-256 names it."""
        files = {name: {"sha256": entry.sha256, "bytes": entry.size} for name, entry in self.files.items()}
        document = {"format": 1, "kind": self.kind.value, "files": files, "metadata": self.metadata}
        return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


def decode_manifest(data: bytes, kind: Kind) -> Manifest:
    """Raises ArtifactError when `data` is not a manifest of `kind`."""
    try:
        document = orjson.loads(data)
        if (
            document["format"] != 1
            or document["kind"] != kind
            or set(document) != {"format", "kind", "files", "metadata"}
        ):
            raise ArtifactError(f"its manifest is not that of a format 1 {kind}")
        if len(document["files"]) > MAX_FILES:
            raise ArtifactError(f"its manifest lists more than {MAX_FILES} files")
        files = {}
        for name, entry in document["files"].items():
            if (
                set(entry) != {"sha256", "bytes"}
                or not _HEX64.fullmatch(entry["sha256"])
                or type(entry["bytes"]) is not int
            ):
                raise ArtifactError("its manifest has a malformed entry")
            files[name] = FileEntry(entry["sha256"], entry["bytes"])
        if not isinstance(document["metadata"], dict):
            raise ArtifactError("its manifest has malformed metadata")
        manifest = Manifest(kind, files, document["metadata"])
        if manifest.encode() != data:  # a name twice, another order: what another reader might take for something else
            raise ArtifactError("its manifest is not written as manifests are")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError("its manifest cannot be read") from error
    return manifest


def unreadable(error: OSError, what: str) -> ArtifactError:
    """`error` as one of ours: ArtifactUnreachable unless what is read is itself to blame. what: "X cannot be read"."""
    said = f"{what}: {error.strerror or error}"
    if error.errno in _ITS_OWN:
        return ArtifactError(said)
    return ArtifactUnreachable(f"{said}; {_ADVICE.get(error.errno or 0, 'see to its disk, or mount it again')}")


def list_files(folder: Path) -> dict[str, int]:
    """Relative path -> bytes of every file below `folder`, at most two levels deep.

    Raises ArtifactMissing when `folder` is not there, ArtifactUnreachable when it cannot be read from here,
    ArtifactError when anything in it is not a plain file or folder.
    """
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise ArtifactError(f"{folder} is not a folder; a link or file is never followed")
        found: dict[str, int] = {}
        for entry in _entries(folder):
            if entry.is_symlink():
                raise ArtifactError(f"{entry.name!r} is a link; links are never followed")
            for file in _entries(Path(entry.path)) if entry.is_dir(follow_symlinks=False) else [entry]:
                name = os.path.relpath(file.path, folder)
                status = file.stat(follow_symlinks=False)
                if not stat.S_ISREG(status.st_mode):
                    raise ArtifactError(f"{name!r} is a link, a device or too deep; only plain files are read")
                found[name] = status.st_size
            if len(found) > MAX_FILES + 2:
                raise ArtifactError(f"it holds more than {MAX_FILES} files")
        return found
    except FileNotFoundError as error:
        raise ArtifactMissing(
            f"{folder} is not there; check ADAPTIDE_ARTIFACTS_URL or restore it from a backup"
        ) from error
    except OSError as error:
        raise unreadable(error, f"{folder} cannot be read") from error


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(islice(entries, MAX_FILES + 3))  # with manifest and signature, still one too many


@contextmanager
def open_plain(path: Path) -> Iterator[BinaryIO]:
    """A plain file opened for reading, and for nothing else within the block; its last part is not followed when it is
    a link. Raises ArtifactError: ArtifactMissing, and ArtifactUnreachable when it cannot be read from here."""
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ArtifactMissing(
            f"{path} is not there; check ADAPTIDE_ARTIFACTS_URL or restore it from a backup"
        ) from error
    except OSError as error:
        raise unreadable(error, f"{path} cannot be opened") from error
    except ValueError as error:
        raise ArtifactError(f"{str(path)!r} cannot be opened: {error}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ArtifactError(f"{path} is not a plain file")
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    except OSError as error:
        raise unreadable(error, f"{path} cannot be read") from error
    finally:
        os.close(descriptor)


def read_plain(path: Path, limit: int) -> bytes:
    """All bytes of a plain file of at most `limit` bytes. Raises as open_plain does."""
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size) if size <= limit else b""
    if size > limit:
        raise ArtifactError(f"{path.name} is larger than {limit} bytes")
    return data


def hash_plain(path: Path) -> FileEntry:
    """Size and SHA-256 of a plain file, read in pieces. Raises as open_plain does."""
    digest, size = hashlib.sha256(), 0
    for piece in _pieces(path):
        digest.update(piece)
        size += len(piece)
    return FileEntry(digest.hexdigest(), size)


def copy_plain(source: Path, target: Path) -> FileEntry:
    """Copy a plain file and say what was written. Raises as open_plain does for `source`, OSError for `target`."""
    digest, size = hashlib.sha256(), 0
    with target.open("xb") as copy:
        for piece in _pieces(source):
            digest.update(piece)
            size += len(piece)
            copy.write(piece)
    return FileEntry(digest.hexdigest(), size)


def _pieces(path: Path) -> Iterator[bytes]:
    with open_plain(path) as file:
        while piece := file.read(_CHUNK):
            yield piece


def check_entry(path: Path, entry: FileEntry) -> None:
    """Raises ArtifactError unless the file at `path` is exactly what `entry` says: size first, then hash."""
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size != entry.size:
        raise ArtifactError(f"{path.name} is {size} bytes, the manifest says {entry.size}")
    if hash_plain(path) != entry:
        raise ArtifactError(f"{path.name} is not what the manifest's sha256 says")
