"""Published bases and adapters: written once under their hash, verified before any load. One class, so over 300 lines.

root/bases/<base_id>/{manifest.json, model/..., codec/...}
root/adapters/<version>/{manifest.json, adapter_config.json, adapter_model.safetensors}

Either also holds manifest.sig.json where a key to sign with is set (signatures.py). The place is a folder, or a URL of
an object store that is read through a cache of the same layout (remote.py).
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from service.adapters import contents
from service.adapters import manifest as manifests
from service.adapters.folder import (
    check_folder,
    check_same,
    folder_signature,
    measure_folder,
    publish_to_folder,
    write_signature,
)
from service.adapters.lora import Dimensions
from service.adapters.manifest import MANIFEST, Kind, Manifest
from service.adapters.remote import RemoteShelf
from service.adapters.signatures import NO_KEYS, Keys
from service.errors import ArtifactError, ArtifactUnreachable
from service.kit.files import set_aside, stale_staging

log = structlog.get_logger(__name__)
T = TypeVar("T")
BASES, ADAPTERS = "bases", "adapters"
NAMES = {BASES: contents.BASE_ID, ADAPTERS: contents.VERSION}


@dataclass(frozen=True, slots=True)
class Published:
    """id: base id or adapter version; digest: sha256 of manifest.json, hex; path: the folder or where it is cached."""

    id: str
    digest: str
    path: Path


@dataclass(frozen=True, slots=True)
class VerifiedBase:
    """A base every byte of which is what was published. `path`/model and `path`/codec may be read while it lives."""

    base_id: str
    digest: str
    path: Path
    metadata: Mapping[str, Any]
    dimensions: Dimensions
    hold: object = field(default=None, repr=False, compare=False)
    """Keeps `path` in the cache."""


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
    hold: object = field(default=None, repr=False)
    """Keeps `path` in the cache."""


class ArtifactStore:
    """Publishes and opens artifacts in one place. Safe to share between threads and processes.

    Every method raises ArtifactError saying which artifact and why, ArtifactMissing when its folder is not there,
    ArtifactUnreachable (one of the latter) when the object store does not answer or refuses, or this machine cannot
    read the folder now, ArtifactUntrusted when it is not signed by one of `keys`.
    """

    def __init__(self, root: Path, remote: RemoteShelf | None = None, keys: Keys = NO_KEYS) -> None:
        """root: the folder; with `remote`, that of its cache, and keys are the remote's."""
        self.root, self.remote = root, remote
        self.keys = keys if remote is None else remote.keys

    def publish_base(self, source: Path, metadata: Mapping[str, Any]) -> Published:
        """Copy `source` (folders model and codec) under the name of its hash; publishing it again changes nothing."""
        with _about(f"the base in {source}"):
            manifest = contents.describe(source, Kind.BASE, metadata)
            norms = contents.check_base_weights(source, manifest, contents.check_base_files(source, manifest))
            if norms:
                manifest = replace(manifest, metadata=manifest.metadata | {contents.NORMS: norms})
            digest = hashlib.sha256(manifest.encode()).hexdigest()
            base_id = f"b-{digest[:16]}"
            return self._publish(BASES, source, manifest, Published(base_id, digest, self._base_path(base_id)))

    def publish_adapter(self, source: Path, metadata: Mapping[str, Any], window_id: int = 0) -> Published:
        """Copy the adapter in `source` under `a<window_id>-<hash>`; the same bytes and metadata give the same version.

        metadata must hold base_id, a base that is published here; window_id 0: the adapter comes from no window.
        """
        with _about(f"the adapter in {source}"):
            manifest = contents.describe(source, Kind.ADAPTER, metadata)
            base_id = contents.named_base(manifest)
            base_digest = hashlib.sha256(self._manifest_bytes(BASES, self._base_path(base_id))).hexdigest()
            contents.adapter_parts(source, manifest, base_id, self._dimensions(base_id, base_digest))
            contents.state_tensors(source, manifest)
            digest = hashlib.sha256(manifest.encode()).hexdigest()
            version = f"a{window_id:06d}-{digest[:12]}"
            return self._publish(ADAPTERS, source, manifest, Published(version, digest, self._adapter_path(version)))

    def open_base(self, base_id: str, digest: str) -> VerifiedBase:
        """Read every byte of a base and compare it with its manifest, and the manifest with `digest` (the store's)."""

        def read(path: Path, manifest: Manifest, hold: object) -> VerifiedBase:
            contents.check_listing(path, manifest)
            for name, entry in manifest.files.items():
                manifests.check_entry(path / name, entry)
            dimensions = contents.check_base_files(path, manifest)
            return VerifiedBase(base_id, digest, path, manifest.metadata, dimensions, hold)

        with _about(f"base {base_id!r}"):
            return self._read(BASES, self._base_path(base_id), digest, read)

    def open_adapter(self, version: str, digest: str, base: VerifiedBase) -> VerifiedAdapter:
        """Read an adapter that was made for `base`; the tensors returned are the very bytes that were hashed."""
        return self.verify_adapter(version, digest, base.base_id, base.dimensions)

    def verify_adapter(self, version: str, digest: str, base_id: str, dimensions: Dimensions) -> VerifiedAdapter:
        """As open_adapter, for a base of which only `read_dimensions` was asked: quick however large the base is."""

        def read(path: Path, manifest: Manifest, hold: object) -> VerifiedAdapter:
            contents.check_listing(path, manifest)
            if contents.named_base(manifest) != base_id:
                raise ArtifactError(f"it was made for base {contents.named_base(manifest)}, not for {base_id}")
            config, tensors = contents.adapter_parts(path, manifest, base_id, dimensions)
            return VerifiedAdapter(version, digest, path, base_id, config, tensors, manifest.metadata, hold)

        with _about(f"adapter {version!r}"):
            return self._read(ADAPTERS, self._adapter_path(version), digest, read)

    def read_state(self, adapter: VerifiedAdapter) -> Mapping[str, NDArray[np.float32]]:
        """What the adapter's method keeps for the next window, by name; empty for a method that keeps nothing."""
        with _about(f"adapter {adapter.version!r}"):
            return self._read(
                ADAPTERS, adapter.path, adapter.digest, lambda path, manifest, _: contents.state_tensors(path, manifest)
            )

    def read_dimensions(self, base_id: str, digest: str) -> Dimensions:
        """The sizes of a base, from its manifest and model config alone; its weights are not read."""
        with _about(f"base {base_id!r}"):
            return self._dimensions(base_id, digest)

    def sign(self, room: str, name: str, digest: str) -> bool:
        """Sign an artifact with the key that signs now; False when it was already.

        digest: the store's, which decides what is signed. The caller has verified the content.
        """
        with _about(name):
            path = self._inside(room, name)
            data = self.remote.published_manifest(room, name) if self.remote else self._manifest_bytes(room, path)
            self._require_registered(data, path, digest)
            before = self.remote.signature(room, name) if self.remote else folder_signature(path)
            signature = self.keys.sign(data)
            if signature is None or self.keys.is_current(data, before):
                return False
            if self.remote is not None:
                self.remote.put_signature(room, name, signature)
            else:
                write_signature(path, signature)
            return True

    def without_keys(self) -> "ArtifactStore":
        """The same place, read whether it is signed or not: for who is about to sign."""
        return ArtifactStore(self.root, self.remote.without_keys() if self.remote else None)

    def check(self, *, write: bool = False) -> None:
        """Raises ArtifactError unless the place can be read, and with `write` written to. A new folder is as good."""
        with _about("the place of artifacts"):
            if self.remote is not None:
                self.remote.check(write=write)
            else:
                check_folder(self.root, write=write)

    def names(self, room: str) -> list[str]:
        """Every name in a room (BASES or ADAPTERS) that could be an artifact's, whole or not."""
        with _about("the place of artifacts"):
            if self.remote is not None:
                found = self.remote.names(room)
            else:
                folder = self.root / room
                found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        return [name for name in found if NAMES[room].fullmatch(name)]

    def measure(self, room: str, name: str) -> tuple[int, datetime]:
        """(bytes, when it was published or published again, or written last if it is not whole)."""
        with _about(name):
            if self.remote is not None:
                return self.remote.measure(room, name)
            return measure_folder(self._inside(room, name))

    def remove(self, room: str, name: str) -> None:
        """Delete an artifact. It is gone at once and whole; what an interruption leaves is no artifact any more."""
        with _about(name):
            path = self._inside(room, name)
            if self.remote is not None:
                self.remote.remove(room, name)
            set_aside(path)

    def remove_staging(self, before: datetime) -> int:
        """Delete what killed publishers left in the folder and has not been written to since `before`; how many."""
        stale = [path for room in NAMES for path in stale_staging(self.root / room, before.timestamp())]
        for path in stale:
            shutil.rmtree(path, ignore_errors=True)
        return len(stale)

    def _read(self, room: str, path: Path, digest: str, read: Callable[[Path, Manifest, object], T]) -> T:
        """What `read` makes of an artifact. A cached one that it refuses is thrown away and fetched again, once."""
        kind = Kind.BASE if room == BASES else Kind.ADAPTER
        if self.remote is None:
            return read(path, self._manifest(room, path, digest, kind), None)
        hold = self.remote.cache.hold(room, path.name)
        fetched = self.remote.bring(room, path.name, digest, kind)
        try:
            return read(path, self._manifest(room, path, digest, kind), hold)
        except ArtifactUnreachable:  # nothing was seen of what is cached
            raise
        except ArtifactError as error:
            if fetched:
                raise
            log.warning("cache_entry_refused", artifact=path.name, reason=error.detail)
        self.remote.cache.discard(room, path.name)
        self.remote.bring(room, path.name, digest, kind)
        return read(path, self._manifest(room, path, digest, kind), hold)

    def _base_path(self, base_id: str) -> Path:
        if not contents.BASE_ID.fullmatch(base_id):
            raise ArtifactError("it is no base id (b- and 16 hex digits)")
        return self._inside(BASES, base_id)

    def _adapter_path(self, version: str) -> Path:
        if not contents.VERSION.fullmatch(version):
            raise ArtifactError("it is no adapter version (a, the window's number, - and 12 hex digits)")
        return self._inside(ADAPTERS, version)

    def _inside(self, room: str, name: str) -> Path:
        for path in (self.root / room, self.root / room / name):
            if path.is_symlink():
                raise ArtifactError(f"{path} is a link; links are never followed")
        return self.root / room / name

    def _manifest_bytes(self, room: str, path: Path) -> bytes:
        if self.remote is not None:
            return self.remote.manifest_bytes(room, path.name)
        return manifests.read_plain(path / MANIFEST, manifests.MAX_MANIFEST_BYTES)

    def _manifest(self, room: str, path: Path, digest: str, kind: Kind) -> Manifest:
        data = manifests.read_plain(path / MANIFEST, manifests.MAX_MANIFEST_BYTES)
        return self._decoded(data, lambda: folder_signature(path), path, digest, kind)

    def _decoded(
        self, data: bytes, signature: Callable[[], bytes | None], path: Path, digest: str, kind: Kind
    ) -> Manifest:
        self._require_registered(data, path, digest)
        if self.keys.set:
            self.keys.check(data, signature())
        return manifests.decode_manifest(data, kind)

    def _require_registered(self, data: bytes, path: Path, digest: str) -> None:
        if hashlib.sha256(data).hexdigest() != digest:
            raise ArtifactError("its manifest is not the one that was registered")
        short = path.name.rpartition("-")[2]
        if not digest.startswith(short):
            raise ArtifactError("its name is not that of its manifest")

    def _dimensions(self, base_id: str, base_digest: str) -> Dimensions:
        path, remote = self._base_path(base_id), self.remote
        if remote is None or path.exists():
            try:
                return contents.read_dimensions(path, self._manifest(BASES, path, base_digest, Kind.BASE))
            except ArtifactError:
                if remote is None:
                    raise
        data = remote.published_manifest(BASES, base_id)
        manifest = self._decoded(data, lambda: remote.signature(BASES, base_id), path, base_digest, Kind.BASE)
        limit = contents.MAX_TEXT_BYTES
        return contents.dimensions_of(manifest, lambda name: remote.read_listed(BASES, base_id, manifest, name, limit))

    def _publish(self, room: str, source: Path, manifest: Manifest, published: Published) -> Published:
        signature = self.keys.sign(manifest.encode())
        if self.remote is not None:
            self.remote.publish(room, published.id, source, manifest, signature)
        elif not publish_to_folder(published.path, source, manifest, signature):
            check_same(published.path, manifest, signature)
        return published


@contextmanager
def _about(subject: str) -> Iterator[None]:
    """Name the artifact in every refusal; what a folder answers to being looked at or changed becomes one."""
    try:
        yield
    except ArtifactError as error:
        raise type(error)(f"{subject} refused: {error.detail}") from error
    except OSError as error:
        raise manifests.unreadable(error, f"{subject} refused: {error.filename} cannot be used") from error
