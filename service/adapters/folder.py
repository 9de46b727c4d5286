"""What is done in a plain folder of artifacts beside opening them."""

import os
from datetime import UTC, datetime
from pathlib import Path

from service.adapters import contents
from service.adapters.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Manifest,
    check_entry,
    copy_plain,
    list_files,
    read_plain,
)
from service.adapters.signatures import MAX_SIGNATURE_BYTES, SIGNATURE
from service.errors import ArtifactError, ArtifactMissing, ArtifactUnreachable
from service.kit.crash_points import CrashPoint, crash_point
from service.kit.files import fsync_path, newest_write, publish_folder, staging_beside


def check_folder(root: Path, *, write: bool) -> None:
    """Raises ArtifactError unless `root` is a folder, or is not there yet; with `write`, one that can be written to."""
    if root.exists() and not root.is_dir():
        raise ArtifactError(f"{root} is not a folder; set ADAPTIDE_ARTIFACTS_URL")
    if write and root.exists() and not os.access(root, os.W_OK | os.X_OK):
        raise ArtifactError(f"{root} cannot be written to; give this user the right, or set ADAPTIDE_ARTIFACTS_URL")


def measure_folder(path: Path) -> tuple[int, datetime]:
    """(bytes, when the manifest was written, or anything if there is none) of one artifact. Raises ArtifactMissing."""
    sizes = list_files(path)
    written = (path / MANIFEST).stat().st_mtime if MANIFEST in sizes else newest_write(path)
    return sum(sizes.values()), datetime.fromtimestamp(written, UTC)


def publish_to_folder(path: Path, source: Path, manifest: Manifest, signature: bytes | None) -> bool:
    """Copy what the manifest lists to `path`, whole or not at all; False when it is published already."""
    if path.exists():
        return False
    try:
        with publish_folder(path) as staging:
            for name, entry in manifest.files.items():
                (staging / name).parent.mkdir(exist_ok=True)
                if copy_plain(source / name, staging / name) != entry:
                    raise ArtifactError(f"{name} changed while it was being published; publish again")
            (staging / MANIFEST).write_bytes(manifest.encode())
            if signature is not None:
                (staging / SIGNATURE).write_bytes(signature)
            crash_point(CrashPoint.ARTIFACT_WRITTEN)
        return True
    except OSError as error:
        if path.exists():  # another process published the same content a moment ago
            return False
        raise ArtifactError(f"it could not be written to {path.parents[1]}: {error.strerror or error}") from error


def check_same(path: Path, manifest: Manifest, signature: bytes | None) -> None:
    """Raises ArtifactError unless what is published there is this; sign it, and let its age say it is still wanted."""
    if read_plain(path / MANIFEST, MAX_MANIFEST_BYTES) != manifest.encode():
        raise ArtifactError(f"{path} is already published with other content; a published name is never reused")
    contents.check_listing(path, manifest)
    for name, entry in manifest.files.items():
        check_entry(path / name, entry)
    if signature is not None and folder_signature(path) != signature:
        write_signature(path, signature)
    os.utime(path / MANIFEST)


def folder_signature(path: Path) -> bytes | None:
    """The bytes of an artifact's signature, None when it has none."""
    try:
        return read_plain(path / SIGNATURE, MAX_SIGNATURE_BYTES)
    except ArtifactUnreachable:  # there may well be one
        raise
    except ArtifactMissing:
        return None


def write_signature(path: Path, signature: bytes) -> None:
    """Give an artifact its signature, or another one, in one step."""
    try:
        with staging_beside(path) as staging:
            (staging / SIGNATURE).write_bytes(signature)
            (staging / SIGNATURE).chmod(0o644)
            fsync_path(staging / SIGNATURE)
            (staging / SIGNATURE).replace(path / SIGNATURE)
        fsync_path(path)
    except OSError as error:
        raise ArtifactError(f"its signature could not be written: {error.strerror or error}") from error
