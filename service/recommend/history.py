"""A user's past as the model and the exclusions need it."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.engine import Connection

from service.events import repository
from service.kit.db import Database
from service.kit.grouped import Grouped
from service.settings import Settings

if TYPE_CHECKING:
    from service.recommend.past_cache import PastCache

READ_TOGETHER = 64


@dataclass(frozen=True, slots=True)
class UserPast:
    """latest: item ids of the last interactions, oldest first; seen: distinct item ids, no order promised.

    through_seq: the highest sequence number of what it was made from: the same events make it again.
    """

    latest: tuple[str, ...]
    seen: tuple[str, ...]
    through_seq: int = 0


def load_past(
    connection: Connection,
    user_id: str,
    *,
    history_items: int,
    seen_items: int,
    ignored_types: Collection[str],
    through_seq: int = repository.NEVER,
) -> UserPast:
    """From the stored events up to `through_seq`; an unknown user has an empty past."""
    most = max(history_items, seen_items)
    found = repository.latest_interactions(connection, user_id, most, ignored_types, through_seq)
    newest = [item_id for item_id, _ in found]
    seen = tuple(dict.fromkeys(newest))[:seen_items]
    highest = max((seq for _, seq in found), default=0)
    if len(newest) == most and len(seen) < seen_items:  # more of them may lie further back
        further = repository.seen_with_seq(connection, user_id, seen_items, ignored_types, through_seq)
        seen = tuple(item_id for item_id, _ in further)
        highest = max([highest, *(seq for _, seq in further)])
    return UserPast(tuple(reversed(newest[:history_items])), seen, highest)


def history_reader(database: Database, settings: Settings, cache: "PastCache | None" = None) -> Grouped[str, UserPast]:
    """Reads the pasts of users that are wanted at the same time: what `cache` lacks in one transaction."""

    def stored(users: Sequence[str]) -> dict[str, UserPast]:
        with database.read() as connection:
            return {
                user_id: load_past(
                    connection,
                    user_id,
                    history_items=settings.history_items,
                    seen_items=settings.seen_items,
                    ignored_types=settings.ignored_event_types,
                )
                for user_id in users
            }

    def read(users: Sequence[str]) -> list[UserPast]:
        wanted = list(dict.fromkeys(users))
        pasts = stored(wanted) if cache is None else read_through(cache, wanted, stored)
        return [pasts[user_id] for user_id in users]

    return Grouped("history-reader", read, most=READ_TOGETHER, max_queued=16 * READ_TOGETHER)


def read_through(
    cache: "PastCache", users: Sequence[str], stored: Callable[[Sequence[str]], dict[str, UserPast]]
) -> dict[str, UserPast]:
    """The pasts of distinct users, from the cache where it has them; what it lacks is read once and left there."""
    found = dict(zip(users, cache.look_up(users), strict=True))
    pasts = {user_id: past for user_id, past in found.items() if isinstance(past, UserPast)}
    if len(pasts) < len(users):
        read = stored([user_id for user_id in users if user_id not in pasts])
        pasts |= read
        leases = {user_id: lease for user_id, lease in found.items() if lease is not None}
        cache.keep({u: (lease, read[u]) for u, lease in leases.items() if not isinstance(lease, UserPast)})
    return pasts
