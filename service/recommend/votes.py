"""Which interactions count for popularity: of one user for one item, one among BLOCK successive events.

However often an account asks for an item, it lifts it no further than one that asked once (docs/decisions/0025). Blocks
are ranges of the sequence, the same for whoever counts, so all that count agree, and only the present block's pairs are
held.
"""

from collections.abc import Collection, Container, Iterable
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Connection

from service.events import repository
from service.recommend.popularity import Popularity

PAGE = 50_000  # events in one query
BLOCK = 10_000
"""Sequence numbers: about a window. Its pairs of user and item take a megabyte or two."""


class Votes:
    """For one thread, which gives it every event in the order of the sequence."""

    def __init__(self, ignored_types: Collection[str]) -> None:
        self._ignored_types = frozenset(ignored_types)
        self._block = -1
        self._cast: set[tuple[str, str]] = set()

    @classmethod
    def standing(cls, connection: Connection, through_seq: int, ignored_types: Collection[str]) -> "Votes":
        """As they are for somebody who has counted every event up to `through_seq`."""
        votes = cls(ignored_types)
        begun = through_seq // BLOCK * BLOCK
        votes.take(repository.interactions_after(connection, begun, BLOCK, through_seq))
        return votes

    def take(self, rows: Iterable[Any]) -> list[tuple[str, datetime]]:
        """(item_id, occurred_at) of those that count. rows: as repository.interactions_after gives them."""
        counting = []
        for seq, user_id, item_id, event_type, occurred_at in rows:
            if event_type in self._ignored_types:
                continue
            if (block := (seq - 1) // BLOCK) != self._block:
                self._block, self._cast = block, set()
            if (pair := (user_id, item_id)) not in self._cast:
                self._cast.add(pair)
                counting.append((item_id, occurred_at))
        return counting


def count_through(
    connection: Connection,
    popularity: Popularity,
    through_seq: int,
    ignored_types: Collection[str],
    *,
    without: Container[tuple[str, str]] = frozenset(),
) -> tuple[int, int]:
    """Add every event with seq <= through_seq that is stored; the first and the last of them, 0 and 0 without any.

    without: (user_id, item_id) that are not counted, such as answers that something is going to be scored by.
    """
    votes, first, last = Votes(ignored_types), 0, 0
    while rows := repository.interactions_after(connection, last, PAGE, through_seq):
        popularity.add(votes.take(row for row in rows if (row.user_id, row.item_id) not in without))
        first, last = first or rows[0].seq, rows[-1].seq
    return first, last
