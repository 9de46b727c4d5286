"""What is asked of a plain folder of artifacts beside opening them."""

import os
from datetime import UTC, datetime
from pathlib import Path

from service.adapters.manifest import MANIFEST, list_files
from service.errors import ArtifactError
from service.kit.files import newest_write


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
