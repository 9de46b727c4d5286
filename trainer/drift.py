"""How far a window's stream has moved from the window before: new users, new items, other tastes.

Beside the gain of the update it says whether there was anything to adapt to. Linear in the events of both windows.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

from service.catalog.index import CatalogueIndex
from service.events import repository as events
from service.kit.db import Database
from service.recommend.ranking import Float64
from service.settings import Settings
from service.windows import repository as windows

USERS_PER_QUERY = 1_000


@dataclass(frozen=True, slots=True)
class Drift:
    """Shares and distances in [0, 1]; None where there is nothing to compare.

    new_user_share: of the window's users, those without an interaction before it. new_item_share: of its distinct
    items in the catalogue, those without one. category_drift, code_drift: Jensen-Shannon distance between this window's
    interactions and the previous window's, by category and by the first level of their semantic IDs.
    """

    new_user_share: float | None
    new_item_share: float | None
    category_drift: float | None
    code_drift: float | None

    def as_json(self) -> dict[str, float | None]:
        """For a window's statistics."""
        values = {name: getattr(self, name) for name in Drift.__dataclass_fields__}
        return {name: None if value is None else round(value, 4) for name, value in values.items()}


def jensen_shannon(one: Mapping[Hashable, float], other: Mapping[Hashable, float]) -> float | None:
    """Distance of two distributions, given as weights of any sum; None when one has none.

    The square root of the Jensen-Shannon divergence in bits: a metric (Endres and Schindelin 2003), 0 for equal ones
    and 1 for those that share nothing.
    """
    total_one, total_other = sum(one.values()), sum(other.values())
    if not total_one or not total_other:
        return None
    divergence = 0.0
    for name in one.keys() | other.keys():
        p, q = one.get(name, 0.0) / total_one, other.get(name, 0.0) / total_other
        middle = (p + q) / 2
        divergence += sum(share / 2 * math.log2(share / middle) for share in (p, q) if share)
    return math.sqrt(min(1.0, max(0.0, divergence)))


def by_category(index: CatalogueIndex, counts: Mapping[str, int]) -> dict[Hashable, float]:
    """Interactions by category: an item in several counts a part in each, one in none as such; unknown ones do not."""
    found: defaultdict[Hashable, float] = defaultdict(float)
    for item_id, count in counts.items():
        if (row := index.row_of.get(item_id)) is not None:
            categories = index.items[row].categories or (None,)
            for category in categories:
                found[category] += count / len(categories)
    return dict(found)


def by_first_code(index: CatalogueIndex, counts: Mapping[str, int]) -> dict[Hashable, float]:
    """Interactions by the first code of their items, in the index's base; items without codes do not count."""
    found: defaultdict[Hashable, float] = defaultdict(float)
    for item_id, count in counts.items():
        row = index.row_of.get(item_id)
        if row is not None and index.coded[row]:
            found[int(index.codes[row, 0])] += count
    return dict(found)


def share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def compare(
    index: CatalogueIndex,
    counts: Mapping[str, int],
    previous: Mapping[str, int],
    popularity_before: Float64,
    users: Iterable[str],
    known_users: Iterable[str],
) -> Drift:
    """counts, previous: interactions by item, of the window and the one before. popularity_before: by row, 0 for none.

    known_users: those of `users` with an interaction before the window.
    """
    rows = [row for item_id in counts if (row := index.row_of.get(item_id)) is not None]
    everyone, known = set(users), set(known_users)
    return Drift(
        new_user_share=share(len(everyone - known), len(everyone)),
        new_item_share=share(sum(not popularity_before[row] for row in rows), len(rows)),
        category_drift=jensen_shannon(by_category(index, counts), by_category(index, previous)),
        code_drift=jensen_shannon(by_first_code(index, counts), by_first_code(index, previous)),
    )


def measure(
    database: Database,
    settings: Settings,
    index: CatalogueIndex,
    after_seq: int,
    through_seq: int,
    popularity_before: Float64,
) -> Drift:
    """Of the window after_seq < seq <= through_seq against the sealed one that ends at after_seq, if there is one."""
    ignored = settings.ignored_event_types
    with database.read() as connection:
        counts = events.item_counts(connection, after_seq, through_seq, ignored)
        before = windows.begin_of(connection, after_seq)
        previous = {} if before is None else events.item_counts(connection, before, after_seq, ignored)
        users = events.users_between(connection, after_seq, through_seq, ignored)
        known: list[str] = []
        for first in range(0, len(users), USERS_PER_QUERY):
            part = users[first : first + USERS_PER_QUERY]
            known += events.earlier_items(connection, part, after_seq, 1, ignored)
    return compare(index, counts, previous, popularity_before, users, known)
