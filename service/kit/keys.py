"""Random secrets: made, hashed, compared, and taken out of text that they have no business in.

A secret is 256 random bits, so one SHA-256 is hash enough.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

PREFIX, SESSION_PREFIX = "adp", "ads"
_OURS = re.compile(rf"\b((?:{PREFIX}_[0-9a-f]{{1,32}}|{SESSION_PREFIX})_)[A-Za-z0-9_-]{{16,}}")
_IN_URL = re.compile(r"(://[^/\s:@\"']*:)[^@\s\"']+@")


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


def new_session() -> str:
    """The secret of a session, `ads_<secret>`."""
    return f"{SESSION_PREFIX}_{secrets.token_urlsafe(32)}"


def redacted(text: str) -> str:
    """`text` without the secrets of our own kinds and without passwords in URLs: for logs, and for what is stored.

    Nothing of ours writes them there; somebody may send a key as a request id, or a driver name the URL it was given.
    """
    return _IN_URL.sub(r"\1***@", _OURS.sub(r"\1***", text))


def derived(secret: str, purpose: str) -> str:
    """What only the holder of `secret` can know, without showing it: its HMAC-SHA256 of `purpose`, hex."""
    return hmac.new(secret.encode(), purpose.encode(), hashlib.sha256).hexdigest()


def same(given: str, expected: str) -> bool:
    """Constant-time comparison."""
    return hmac.compare_digest(given.encode(), expected.encode())
