"""A user's past as the model and the exclusions need it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from service.events import repository
from service.kit.db import Database
from service.kit.grouped import Grouped
from service.settings import Settings

READ_TOGETHER = 64


@dataclass(frozen=True, slots=True)
class UserPast:
    """latest: item ids of the last interactions, oldest first; seen: distinct item ids, no order promised."""

    latest: tuple[str, ...]
    seen: tuple[str, ...]


def load_past(
    connection: Connection, user_id: str, *, history_items: int, seen_items: int, ignored_types: Collection[str]
) -> UserPast:
    """From the stored events; an unknown user has an empty past."""
    most = max(history_items, seen_items)
    newest = repository.latest_items(connection, user_id, most, ignored_types)
    seen = tuple(dict.fromkeys(newest))[:seen_items]
    if len(newest) == most and len(seen) < seen_items:  # more of them may lie further back
        seen = tuple(repository.seen_items(connection, user_id, seen_items, ignored_types))
    return UserPast(tuple(reversed(newest[:history_items])), seen)


def history_reader(database: Database, settings: Settings) -> Grouped[str, UserPast]:
    """Reads the pasts of users that are wanted at the same time in one transaction."""

    def read(users: Sequence[str]) -> list[UserPast]:
        with database.read() as connection:
            return [
                load_past(
                    connection,
                    user_id,
                    history_items=settings.history_items,
                    seen_items=settings.seen_items,
                    ignored_types=settings.ignored_event_types,
                )
                for user_id in users
            ]

    return Grouped("history-reader", read, most=READ_TOGETHER, max_queued=16 * READ_TOGETHER)
