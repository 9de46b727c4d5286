"""Artifacts in an object store: published content first and manifest last, read through a cache on the disk.

Without its manifest.json nothing is an artifact, so one that was cut off on its way up is never seen.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from service.adapters import contents
from service.adapters import manifest as manifests
from service.adapters.cache import Cache
from service.adapters.manifest import MANIFEST, MAX_FILES, MAX_MANIFEST_BYTES, FileEntry, Kind, Manifest
from service.adapters.signatures import MAX_SIGNATURE_BYTES, NO_KEYS, SIGNATURE, Keys
from service.errors import (
    ArtifactError,
    ArtifactMissing,
    ArtifactUnreachable,
    ObjectMissing,
    ObjectsAway,
    ObjectsError,
)
from service.kit.backoff import Breaker, Refused
from service.kit.files import publish_folder
from service.kit.objects import ObjectFolder

# A bucket that hangs holds so many threads at most, each for ADAPTIDE_ARTIFACTS_TIMEOUT; the API has 40.
_MOST_READERS = 8
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_MOST_OBJECTS = 4 * MAX_FILES  # of one artifact, before its listing is taken for hostile


class RemoteShelf:
    """One folder of an object store and the cache it is read through. Safe to share between threads and processes.

    Every method raises ArtifactError when what is there may not be used, ArtifactMissing when it is not there,
    ArtifactUnreachable when the store does not answer or refuses. What reads is refused at once, too, for a while after
    it did (the breaker); what publishes or deletes asks every time.
    """

    def __init__(self, objects: ObjectFolder, cache: Cache, keys: Keys = NO_KEYS) -> None:
        self.objects, self.cache, self.keys = objects, cache, keys
        self._breaker = Breaker(_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _MOST_READERS)

    def without_keys(self) -> "RemoteShelf":
        """The same place, read whether it is signed or not."""
        return RemoteShelf(self.objects, self.cache)

    def manifest_bytes(self, room: str, name: str) -> bytes:
        """The manifest in the cache if there is one, else the published one."""
        cached = self.cache.path(room, name) / MANIFEST
        if cached.exists():
            return manifests.read_plain(cached, MAX_MANIFEST_BYTES)
        return self.published_manifest(room, name)

    def published_manifest(self, room: str, name: str) -> bytes:
        with self._reading():
            return self.objects.read(f"{room}/{name}/{MANIFEST}", MAX_MANIFEST_BYTES)

    def signature(self, room: str, name: str) -> bytes | None:
        """The published signature, None when there is none."""
        with self._reading():
            try:
                return self.objects.read(f"{room}/{name}/{SIGNATURE}", MAX_SIGNATURE_BYTES)
            except ObjectMissing:
                return None

    def put_signature(self, room: str, name: str, signature: bytes) -> None:
        with _told():
            self.objects.put(f"{room}/{name}/{SIGNATURE}", signature)

    def read_listed(self, room: str, name: str, manifest: Manifest, file: str, limit: int) -> bytes:
        """One published file, without fetching the others; its hash was compared."""
        with self._reading():
            data = self.objects.read(f"{room}/{name}/{file}", limit)
        if hashlib.sha256(data).hexdigest() != manifest.files[file].sha256:
            raise ArtifactError(f"{file} is not what the manifest's sha256 says")
        return data

    def bring(self, room: str, name: str, digest: str, kind: Kind) -> bool:
        """See that the cache has the artifact whose manifest hashes to `digest`; True when it was fetched just now.

        Its sizes are known from the manifest, whose hash is in the store, before a byte of content is fetched.
        """
        target = self.cache.path(room, name)
        if target.exists():
            return False
        data = self.published_manifest(room, name)
        if hashlib.sha256(data).hexdigest() != digest:
            raise ArtifactError("its manifest is not the one that was registered")
        signature = self.signature(room, name) if self.keys.set else None
        self.keys.check(data, signature)
        manifest = manifests.decode_manifest(data, kind)
        contents.check_caps({file: entry.size for file, entry in manifest.files.items()}, kind)
        with self._reading():
            self._check_listing(room, name, manifest)
        self.cache.make_room(len(data) + sum(entry.size for entry in manifest.files.values()))
        try:
            with publish_folder(target) as staging:
                for file, entry in manifest.files.items():
                    (staging / file).parent.mkdir(exist_ok=True)
                    with self._reading():
                        self._fetch(f"{room}/{name}/{file}", file, entry, staging / file)
                (staging / MANIFEST).write_bytes(data)
                if signature is not None:
                    (staging / SIGNATURE).write_bytes(signature)
        except OSError as error:
            if not target.exists():  # else another process fetched the same a moment ago
                raise ArtifactUnreachable(
                    f"it could not be fetched to {self.cache.root}: {error.strerror or error}"
                ) from error
        return True

    def publish(self, room: str, name: str, source: Path, manifest: Manifest, signature: bytes | None) -> None:
        """Upload `source`, read back what came of it, and only then its manifest. Publishing it again changes nothing.

        Raises ArtifactError when the name is published with other content.
        """
        folder, data = f"{room}/{name}", manifest.encode()
        with _told():
            try:
                published = self.objects.read(f"{folder}/{MANIFEST}", MAX_MANIFEST_BYTES)
            except ObjectMissing:
                published = None
            if published not in (None, data):
                raise ArtifactError(
                    f"{name} is already published in {self.objects.place} with other content; "
                    "a published name is never reused"
                )
            if published is None:
                for file in manifest.files:
                    self.objects.put_file(f"{folder}/{file}", source / file)
            for file, entry in manifest.files.items():
                self._check_object(f"{folder}/{file}", file, entry)
            if signature is not None:
                self.put_signature(room, name, signature)
            self.objects.put(f"{folder}/{MANIFEST}", data)  # again, too: its age says that somebody still wants it
            self._check_listing(room, name, manifest)

    def check(self, *, write: bool) -> None:
        """Raises ArtifactUnreachable unless the place can be listed, and with `write` written to. Always asks."""
        try:
            with _told():
                self.objects.check(write=write)
        except ArtifactUnreachable:
            self._breaker.note(failed=True)
            raise
        self._breaker.note(failed=False)

    def names(self, room: str) -> list[str]:
        with _told():
            return self.objects.names(room)

    def measure(self, room: str, name: str) -> tuple[int, datetime]:
        """(bytes, when anything in it was written last) of whatever lies under a name. Raises ArtifactMissing."""
        with _told():
            found = self.objects.entries(f"{room}/{name}", _MOST_OBJECTS)
            if not found:
                raise ArtifactMissing("nothing is there")
            marked = [entry for entry in found if entry.name == MANIFEST] or found
            newest = max(self.objects.modified(f"{room}/{name}/{entry.name}") for entry in marked)
            return sum(entry.size for entry in found), newest

    def remove(self, room: str, name: str) -> None:
        """Delete an artifact, its manifest first: from then on it is none, however much of it is left."""
        with _told():
            self.objects.delete(f"{room}/{name}/{MANIFEST}")
            for entry in self.objects.entries(f"{room}/{name}", _MOST_OBJECTS):
                self.objects.delete(f"{room}/{name}/{entry.name}")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """As _told, behind the breaker."""
        try:
            with _told(), self._breaker.guard(ObjectsAway):
                yield
        except Refused as refused:
            raise ArtifactUnreachable(f"{self.objects.place} is not asked: {refused}") from None

    def _check_listing(self, room: str, name: str, manifest: Manifest) -> None:
        found = {entry.name: entry.size for entry in self.objects.entries(f"{room}/{name}", _MOST_OBJECTS)}
        # What the manifest does not list is never fetched, so it may lie there (some stores show writes in progress).
        contents.check_sizes({file: size for file, size in found.items() if file in manifest.files}, manifest)

    def _fetch(self, path: str, file: str, entry: FileEntry, target: Path) -> None:
        if self._copied(path, entry, target):
            return
        if not self._copied(path, entry, target):  # the network may have damaged it, not the store
            raise ArtifactError(f"{file} is not what the manifest's sha256 says")

    def _copied(self, path: str, entry: FileEntry, target: Path) -> bool:
        digest = hashlib.sha256()
        with target.open("wb") as copy:
            for piece in self.objects.pieces(path, entry.size):
                digest.update(piece)
                copy.write(piece)
        return digest.hexdigest() == entry.sha256

    def _check_object(self, path: str, file: str, entry: FileEntry) -> None:
        digest = hashlib.sha256()
        for piece in self.objects.pieces(path, entry.size):
            digest.update(piece)
        if digest.hexdigest() != entry.sha256:
            raise ArtifactError(f"{file} in {self.objects.place} is not what was uploaded; publish again")


@contextmanager
def _told() -> Iterator[None]:
    """An object store's failure as an artifact's."""
    try:
        yield
    except ObjectMissing as error:
        raise ArtifactMissing(f"{error.detail}; check ADAPTIDE_ARTIFACTS_URL or restore it from a backup") from error
    except ObjectsError as error:
        raise ArtifactUnreachable(error.detail) from error
