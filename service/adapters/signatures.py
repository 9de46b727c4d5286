"""Signatures of manifests: published by somebody who holds the key, not by whoever can write to the place or the store.

A file of its own beside the manifest, whose bytes name the artifact: {"format":1,"hmac_sha256":HEX,"key":ID}. The ID is
taken from the key by HMAC too, says nothing about it, and tells which of several keys it was.
"""

import hmac
import re
from collections.abc import Sequence

import orjson

from service.errors import ArtifactUntrusted

SIGNATURE = "manifest.sig.json"
MAX_SIGNATURE_BYTES = 1024

_ID = re.compile(r"[0-9a-f]{8}")
_SIGN_THEM = "if you trust what is registered, run `adaptide artifacts sign` where the key is set"


class Keys:
    """The key that signs and those that are accepted beside it while keys change. None: nothing is signed or asked."""

    def __init__(self, signing: str | None = None, accepted: Sequence[str] = ()) -> None:
        self._keys = [key.encode() for key in (signing, *accepted) if key]

    def __repr__(self) -> str:
        return f"Keys({', '.join(self.ids) or 'none'})"

    @property
    def set(self) -> bool:
        """Whether artifacts must be signed."""
        return bool(self._keys)

    @property
    def ids(self) -> list[str]:
        """Of all that are accepted, the signing one first."""
        return [_id(key) for key in self._keys]

    def sign(self, manifest: bytes) -> bytes | None:
        """The signature file of a manifest's bytes, None without a key."""
        return _signed(self._keys[0], manifest) if self._keys else None

    def check(self, manifest: bytes, signature: bytes | None) -> None:
        """Raises ArtifactUntrusted, saying what to do, unless `signature` (None: there is no file) is one of ours."""
        if not self._keys or (signature is not None and self._by(manifest, signature) is not None):
            return
        ours = ", ".join(self.ids)
        if signature is None:
            raise ArtifactUntrusted(f"it is not signed, and ADAPTIDE_SIGNING_KEY is set; {_SIGN_THEM}")
        if (named := _named(signature)) is None:
            raise ArtifactUntrusted(f"its {SIGNATURE} is no signature; restore it from a backup, or {_SIGN_THEM}")
        if named not in self.ids:
            raise ArtifactUntrusted(
                f"it is signed with key {named}, and here only {ours} count: add that key to "
                f"ADAPTIDE_SIGNING_KEYS_ACCEPTED, or {_SIGN_THEM}"
            )
        raise ArtifactUntrusted(
            f"its signature by key {named} is not that of its manifest: one of them was changed; restore both from a "
            f"backup, or {_SIGN_THEM}"
        )

    def is_current(self, manifest: bytes, signature: bytes | None) -> bool:
        """Whether `signature` is the signing key's own."""
        return signature is not None and self._by(manifest, signature) == 0

    def _by(self, manifest: bytes, signature: bytes) -> int | None:
        """The number of the key whose signature it is, byte for byte."""
        for number, key in enumerate(self._keys):
            if hmac.compare_digest(signature, _signed(key, manifest)):
                return number
        return None


NO_KEYS = Keys()


def _signed(key: bytes, manifest: bytes) -> bytes:
    mac = hmac.digest(key, b"adaptide manifest 1\n" + manifest, "sha256").hex()
    return orjson.dumps({"format": 1, "hmac_sha256": mac, "key": _id(key)})


def _id(key: bytes) -> str:
    return hmac.digest(key, b"adaptide key id 1\n", "sha256").hex()[:8]


def _named(signature: bytes) -> str | None:
    try:
        document = orjson.loads(signature)
        named = document["key"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return named if isinstance(named, str) and _ID.fullmatch(named) else None
