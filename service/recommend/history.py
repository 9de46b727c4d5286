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
    latest = repository.latest_items(connection, user_id, history_items, ignored_types)
    if len(latest) < history_items:  # then the latest interactions are all there are
        return UserPast(tuple(reversed(latest)), tuple(set(latest)))
    return UserPast(
        tuple(reversed(latest)), tuple(repository.seen_items(connection, user_id, seen_items, ignored_types))
    )
