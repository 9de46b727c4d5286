"""The folder of published bases and adapters: written once under a name that is their hash, verified before any load.

root/bases/<base_id>/{manifest.json, model/..., codec/...}
root/adapters/<version>/{manifest.json, adapter_config.json, adapter_model.safetensors}
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.adapters import contents
from service.adapters import manifest as manifests
from service.adapters.lora import Dimensions
from service.adapters.manifest import MANIFEST, Kind, Manifest
from service.errors import ArtifactError
from service.kit.files import publish_folder


@dataclass(frozen=True, slots=True)
class Published:
    """id: base id or adapter version; digest: sha256 of manifest.json, hex; path: the immutable folder."""

    id: str
    digest: str
    path: Path


@dataclass(frozen=True, slots=True)
class VerifiedBase:
    """A base every byte of which is what was published. `path`/model and `path`/codec may be read."""

    base_id: str
    digest: str
    path: Path
    metadata: Mapping[str, Any]
    dimensions: Dimensions


@dataclass(frozen=True, slots=True, eq=False)
class VerifiedAdapter:
    """A plain LoRA that fits its base.

    tensors: PEFT name -> float32 A [r, columns] or B [rows, r]; config: adapter_config.json, checked.
    """

    version: str
    digest: str
    path: Path
    base_id: str
    config: Mapping[str, Any]
    tensors: Mapping[str, NDArray[np.float32]]
    metadata: Mapping[str, Any]


class ArtifactStore:
    """Publishes and opens artifacts below one folder. Safe to share between threads and processes.

    Every method raises ArtifactError saying which artifact and why, ArtifactMissing when its folder is not there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def publish_base(self, source: Path, metadata: Mapping[str, Any]) -> Published:
        """Copy `source` (folders model and codec) under the name of its hash; publishing it again changes nothing."""
        with _about(f"the base in {source}"):
            manifest = contents.describe(source, Kind.BASE, metadata)
            contents.check_base_files(source, manifest)
            contents.check_base_weights(source, manifest)
            digest = hashlib.sha256(manifest.encode()).hexdigest()
            base_id = f"b-{digest[:16]}"
            return self._publish(source, manifest, Published(base_id, digest, self._base_path(base_id)))

    def publish_adapter(self, source: Path, metadata: Mapping[str, Any], window_id: int = 0) -> Published:
        """Copy the adapter in `source` under `a<window_id>-<hash>`; the same bytes and metadata give the same version.

        metadata must hold base_id, a base that is published here; window_id 0: the adapter comes from no window.
        """
        with _about(f"the adapter in {source}"):
            manifest = contents.describe(source, Kind.ADAPTER, metadata)
            base_id = contents.named_base(manifest)
            base_digest = hashlib.sha256(self._manifest_bytes(self._base_path(base_id))).hexdigest()
            contents.adapter_parts(source, manifest, base_id, self._dimensions(base_id, base_digest))
            contents.state_tensors(source, manifest)
            digest = hashlib.sha256(manifest.encode()).hexdigest()
            version = f"a{window_id:06d}-{digest[:12]}"
            return self._publish(source, manifest, Published(version, digest, self._adapter_path(version)))

    def open_base(self, base_id: str, digest: str) -> VerifiedBase:
        """Read every byte of a base and compare it with its manifest, and the manifest with `digest` (the store's)."""
        with _about(f"base {base_id!r}"):
            path = self._base_path(base_id)
            manifest = self._manifest(path, digest, Kind.BASE)
            contents.check_listing(path, manifest)
            for name, entry in manifest.files.items():
                manifests.check_entry(path / name, entry)
            dimensions = contents.check_base_files(path, manifest)
            return VerifiedBase(base_id, digest, path, manifest.metadata, dimensions)

    def open_adapter(self, version: str, digest: str, base: VerifiedBase) -> VerifiedAdapter:
        """Read an adapter that was made for `base`; the tensors returned are the very bytes that were hashed."""
        return self.verify_adapter(version, digest, base.base_id, base.dimensions)

    def verify_adapter(self, version: str, digest: str, base_id: str, dimensions: Dimensions) -> VerifiedAdapter:
        """As open_adapter, for a base of which only `read_dimensions` was asked: quick however large the base is."""
        with _about(f"adapter {version!r}"):
            path = self._adapter_path(version)
            manifest = self._manifest(path, digest, Kind.ADAPTER)
            contents.check_listing(path, manifest)
            if contents.named_base(manifest) != base_id:
                raise ArtifactError(f"it was made for base {contents.named_base(manifest)}, not for {base_id}")
            config, tensors = contents.adapter_parts(path, manifest, base_id, dimensions)
            return VerifiedAdapter(version, digest, path, base_id, config, tensors, manifest.metadata)

    def read_state(self, adapter: VerifiedAdapter) -> Mapping[str, NDArray[np.float32]]:
        """What the adapter's method keeps for the next window, by name; empty for a method that keeps nothing."""
        with _about(f"adapter {adapter.version!r}"):
            return contents.state_tensors(adapter.path, self._manifest(adapter.path, adapter.digest, Kind.ADAPTER))

    def read_dimensions(self, base_id: str, digest: str) -> Dimensions:
        """The sizes of a base, from its manifest and model config alone; its weights are not read."""
        with _about(f"base {base_id!r}"):
            return self._dimensions(base_id, digest)

    def _base_path(self, base_id: str) -> Path:
        if not contents.BASE_ID.fullmatch(base_id):
            raise ArtifactError("it is no base id (b- and 16 hex digits)")
        return self._inside("bases", base_id)

    def _adapter_path(self, version: str) -> Path:
        if not contents.VERSION.fullmatch(version):
            raise ArtifactError("it is no adapter version (a, the window's number, - and 12 hex digits)")
        return self._inside("adapters", version)

    def _inside(self, room: str, name: str) -> Path:
        for path in (self.root / room, self.root / room / name):
            if path.is_symlink():
                raise ArtifactError(f"{path} is a link; links are never followed")
        return self.root / room / name

    def _manifest_bytes(self, path: Path) -> bytes:
        return manifests.read_plain(path / MANIFEST, manifests.MAX_MANIFEST_BYTES)

    def _manifest(self, path: Path, digest: str, kind: Kind) -> Manifest:
        data = self._manifest_bytes(path)
        if hashlib.sha256(data).hexdigest() != digest:
            raise ArtifactError("its manifest is not the one that was registered")
        short = path.name.rpartition("-")[2]
        if not digest.startswith(short):
            raise ArtifactError("its name is not that of its manifest")
        return manifests.decode_manifest(data, kind)

    def _dimensions(self, base_id: str, base_digest: str) -> Dimensions:
        path = self._base_path(base_id)
        manifest = self._manifest(path, base_digest, Kind.BASE)
        return contents.read_dimensions(path, manifest)

    def _publish(self, source: Path, manifest: Manifest, published: Published) -> Published:
        if not published.path.exists():
            try:
                with publish_folder(published.path) as staging:
                    for name, entry in manifest.files.items():
                        (staging / name).parent.mkdir(exist_ok=True)
                        if manifests.copy_plain(source / name, staging / name) != entry:
                            raise ArtifactError(f"{name} changed while it was being published; publish again")
                    (staging / MANIFEST).write_bytes(manifest.encode())
                return published
            except OSError as error:
                if not published.path.exists():  # else another process published the same content a moment ago
                    raise ArtifactError(f"it could not be written to {self.root}: {error.strerror or error}") from error
        self._require_same(manifest, published)
        return published

    def _require_same(self, manifest: Manifest, published: Published) -> None:
        if self._manifest_bytes(published.path) != manifest.encode():
            raise ArtifactError(
                f"{published.path} is already published with other content; a published name is never reused"
            )
        contents.check_listing(published.path, manifest)
        for name, entry in manifest.files.items():
            manifests.check_entry(published.path / name, entry)


@contextmanager
def _about(subject: str) -> Iterator[None]:
    """Name the artifact in every refusal."""
    try:
        yield
    except ArtifactError as error:
        raise type(error)(f"{subject} refused: {error.detail}") from error
