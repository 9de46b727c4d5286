"""Identifiers that sort by time (RFC 9562 version 7)."""

import uuid_utils


def uuid7() -> str:
    """A new time-ordered identifier, 36 characters."""
    return str(uuid_utils.uuid7())
