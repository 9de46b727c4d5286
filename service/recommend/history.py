"""A user's past as the model and the exclusions need it."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from service.events import repository


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
