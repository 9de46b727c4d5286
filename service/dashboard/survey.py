"""The health of the catalogue: made in the background, from this process's snapshot and a bounded look at the store."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import nlargest
from itertools import islice

import numpy as np

from service.catalog import repository as catalog
from service.catalog.index import CatalogueIndex, IndexedItem
from service.catalog.usage import Collisions, LevelUsage, collisions, level_usage
from service.kit.clock import Clock
from service.kit.db import Database
from service.recommend import repository as recommendations

LISTS, READ = 20_000, 1_000
LOOK_BACK = timedelta(days=7)
"""So many of the latest lists are counted, none older than that."""
NEW = timedelta(days=7)
LARGEST, MEMBERS = 10, 5
SHOWN, MOST = 20, 10
LOOKED_THROUGH = 5_000  # newest items, for those never recommended
FRESH_S = 60.0


@dataclass(frozen=True, slots=True)
class Recommended:
    """counts: item_id -> in how many of the latest `lists` it was. since: of the oldest of them; whole: none was left
    out within LOOK_BACK."""

    counts: Mapping[str, int]
    lists: int
    since: datetime | None
    whole: bool


@dataclass(frozen=True, slots=True)
class NewItem:
    item: IndexedItem
    created_at: datetime
    recommended: int


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """items: rows of the catalogue; hidden: not available, or deleted; eligible: available, with codes.

    never: of the eligible ones, not in `recommended`; some: the newest of them. new: added within NEW before `at`.
    """

    at: datetime
    base_id: str | None
    items: int
    hidden: int
    without_codes: int
    eligible: int
    levels: tuple[LevelUsage, ...]
    collisions: Collisions
    collided: tuple[tuple[IndexedItem, ...], ...]
    new: int
    newest: tuple[NewItem, ...]
    recommended: Recommended
    never: int
    some: tuple[IndexedItem, ...]
    most: tuple[tuple[IndexedItem, int], ...]


def count_recommended(database: Database, now: datetime) -> Recommended:
    """Raises StoreUnavailable."""
    counts: Counter[str] = Counter()
    lists, since, last = 0, None, None
    while lists < LISTS:
        with database.read() as connection:
            rows = recommendations.latest_lists(connection, READ, last)
        for recommendation_id, created_at, items in rows:
            if now - created_at > LOOK_BACK:
                return Recommended(counts, lists, since, True)
            counts.update({entry[0] for entry in items})
            lists, since, last = lists + 1, created_at, recommendation_id
        if len(rows) < READ:
            return Recommended(counts, lists, since, True)
    return Recommended(counts, lists, since, False)


def survey(database: Database, index: CatalogueIndex, clock: Clock) -> Survey:
    """Raises StoreUnavailable."""
    now = clock()
    recommended = count_recommended(database, now)
    eligible = index.available & index.coded
    rows = index.rows(recommended.counts)
    shared = collisions(index.trie, LARGEST, MEMBERS)
    new, newest = _new_items(database, index, now, recommended.counts)
    ranked = nlargest(2 * MOST, recommended.counts.items(), key=lambda one: one[1])
    known = [(item_id, count) for item_id, count in ranked if item_id in index.row_of]
    return Survey(
        at=now,
        base_id=index.base_id,
        items=len(index.items),
        hidden=int(np.count_nonzero(~index.available)),
        without_codes=int(np.count_nonzero(index.available & ~index.coded)),
        eligible=int(np.count_nonzero(eligible)),
        levels=level_usage(index),
        collisions=shared,
        collided=tuple(tuple(index.items[row] for row in group.rows) for group in shared.largest),
        new=new,
        newest=newest,
        recommended=recommended,
        never=int(np.count_nonzero(eligible)) - int(np.count_nonzero(eligible[rows])),
        some=_never(index, recommended.counts),
        most=tuple((index.items[index.row_of[item_id]], count) for item_id, count in known[:MOST]),
    )


def _never(index: CatalogueIndex, counts: Mapping[str, int]) -> tuple[IndexedItem, ...]:
    named = (item for item in islice(reversed(index.items), LOOKED_THROUGH) if item.searched is not None)
    return tuple(islice((item for item in named if item.item_id not in counts), SHOWN))


def _new_items(
    database: Database, index: CatalogueIndex, now: datetime, counts: Mapping[str, int]
) -> tuple[int, tuple[NewItem, ...]]:
    """How many were added within NEW, and the newest of them.

    Rows are in order of creation, so the first new one is found by bisection: some twenty look-ups, however many items.
    """
    with database.read() as connection:

        def created(row: int) -> datetime:
            item_id = index.items[row].item_id
            return catalog.by_ids(connection, [item_id])[item_id].created_at

        low, high = 0, len(index.items)
        while low < high:
            middle = (low + high) // 2
            if created(middle) < now - NEW:
                low = middle + 1
            else:
                high = middle
        last = list(islice(reversed(index.items), min(SHOWN, len(index.items) - low)))
        stored = catalog.by_ids(connection, [item.item_id for item in last])
    newest = tuple(NewItem(item, stored[item.item_id].created_at, counts.get(item.item_id, 0)) for item in last)
    return len(index.items) - low, newest
