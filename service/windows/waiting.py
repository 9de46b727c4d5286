"""What closed windows wait for when nothing is wrong: a canary to be promoted, or an earlier window's next attempt."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from service.settings import Settings
from service.trials.promotion import under_way
from service.windows import repository
from service.windows.service import next_attempt_of


@dataclass(frozen=True, slots=True)
class Waits:
    """until: when the updater goes on by itself. canary: the adapter on trial, or window_id: the window tried again."""

    until: datetime
    canary: str | None = None
    window_id: int | None = None


def read_waits(connection: Connection, settings: Settings) -> Waits | None:
    """None: the updater may take up the oldest window at once."""
    if (row := under_way(connection)) is not None:
        return Waits(row.started_at + settings.canary_duration, canary=row.adapter_version)
    oldest = repository.oldest_unsettled(connection, settings.window_attempts)
    again = None if oldest is None else next_attempt_of(oldest, settings)
    return None if oldest is None or again is None else Waits(again, window_id=oldest.window_id)
