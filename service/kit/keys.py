"""Random secrets: made, hashed and compared. A secret is 256 random bits, so one SHA-256 is hash enough."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass

PREFIX = "adp"


@dataclass(frozen=True, slots=True)
class NewKey:
    """`token` is shown once; `key_id` and `digest` are what the store keeps."""

    key_id: str
    token: str
    digest: str


def new_key() -> NewKey:
    """A key `adp_<key_id>_<secret>`."""
    key_id = secrets.token_hex(6)
    token = f"{PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
    return NewKey(key_id, token, digest(token))


def digest(token: str) -> str:
    """SHA-256 of the whole token, hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def key_id_of(token: str) -> str | None:
    """The public part of a token, or None when it is not one of ours."""
    parts = token.split("_", 2)
    return parts[1] if len(parts) == 3 and parts[0] == PREFIX and parts[1] else None


def matches(token: str, stored_digest: str) -> bool:
    """Constant-time comparison of a presented token with a stored digest."""
    return hmac.compare_digest(digest(token), stored_digest)
