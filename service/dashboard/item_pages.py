"""What an item's page shows, and the search that leads to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from service.catalog import repository as catalog
from service.catalog.index import CatalogueIndex, IndexedItem
from service.catalog.repository import StoredItem
from service.catalog.service import item_text
from service.catalog.usage import neighbours
from service.errors import NotFound
from service.events import repository as events
from service.kit.db import Database

EVENTS, AMONG = 10, 20_000
"""The latest events with the item, of so many of the newest."""
NEAR = 10
FOUND, LOOKED_THROUGH = 50, 100_000
"""Most results of a search, and how many of the newest items it looks at."""


@dataclass(frozen=True, slots=True)
class Near:
    """Items that share exactly so many levels; total: all of them."""

    levels: int
    total: int
    items: tuple[IndexedItem, ...]


@dataclass(frozen=True, slots=True)
class ItemPage:
    """text: what its codes were made from. serves: under the codes of the active base (None: it has none yet)."""

    item: StoredItem
    text: str
    codes: tuple[int, ...] | None
    near: tuple[Near, ...]
    events: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Found:
    """Results of a search. looked_through: items at most; whole: that is all of them; more: there are more results."""

    items: tuple[IndexedItem, ...]
    looked_through: int
    whole: bool
    more: bool


def read_item(database: Database, index: CatalogueIndex, item_id: str) -> ItemPage:
    """Raises NotFound, StoreUnavailable."""
    with database.read() as connection:
        item = catalog.by_ids(connection, [item_id]).get(item_id)
        if item is None:
            raise NotFound("the catalogue has no such item; PUT /v1/items adds it")
        latest = events.latest_of_item(connection, item_id, among=AMONG, limit=EVENTS)
    row = index.row_of.get(item_id, -1)
    codes = item.codes if item.base_id is not None and item.base_id == index.base_id else None
    near = neighbours(index.trie, codes, row, NEAR) if codes is not None else []
    return ItemPage(
        item,
        item_text(item.title, item.categories, item.brand, item.description),
        codes,
        tuple(Near(n.levels, n.total, tuple(index.items[r] for r in n.rows)) for n in near),
        tuple(latest),
    )


def search(index: CatalogueIndex, text: str) -> Found:
    """Items whose id or title begins with `text` (titles whatever their case), the newest first, an exact id before.

    It looks at the newest LOOKED_THROUGH items: a pass over very many would keep requests waiting for the interpreter.
    """
    wanted, row = text.casefold(), index.row_of.get(text)
    exact = None if row is None else index.items[row]
    found = [] if exact is None else [exact]
    for item in islice(reversed(index.items), LOOKED_THROUGH):
        begins = item.item_id.startswith(text) or item.title.casefold().startswith(wanted)
        if begins and item is not exact:
            found.append(item)
            if len(found) > FOUND:
                break
    looked = min(LOOKED_THROUGH, len(index.items))
    return Found(tuple(found[:FOUND]), looked, looked == len(index.items), len(found) > FOUND)


def newest(index: CatalogueIndex, count: int) -> tuple[IndexedItem, ...]:
    return tuple(islice(reversed(index.items), count))
