"""Identifiers that sort by time (RFC 9562 version 7)."""

from datetime import UTC, datetime, timedelta

import uuid_utils


def uuid7() -> str:
    """A new time-ordered identifier, 36 characters."""
    return str(uuid_utils.uuid7())


def least_uuid7(at: datetime) -> str:
    """The least identifier of a moment (in milliseconds); those made before it sort below."""
    digits = f"{int(at.timestamp() * 1000):012x}"
    return f"{digits[:8]}-{digits[8:]}-7000-8000-000000000000"


def moment_of(uuid7: str) -> datetime:
    """When it was made, to the millisecond."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=int(uuid7[:8] + uuid7[9:13], 16))
