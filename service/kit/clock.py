"""Time as a value that is passed in, so that a test can say what time it is."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The present moment, aware, UTC."""
    return datetime.now(UTC)
