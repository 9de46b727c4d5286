"""Identifiers that sort by time (RFC 9562 version 7)."""

from datetime import datetime

import uuid_utils


def uuid7() -> str:
    """A new time-ordered identifier, 36 characters."""
    return str(uuid_utils.uuid7())


def least_uuid7(at: datetime) -> str:
    """The least identifier of a moment (in milliseconds); those made before it sort below."""
    digits = f"{int(at.timestamp() * 1000):012x}"
    return f"{digits[:8]}-{digits[8:]}-7000-8000-000000000000"
