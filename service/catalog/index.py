"""The catalogue in memory: one immutable snapshot that a request holds from its first line to its reply."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from service.catalog.repository import Codes, StoredItem
from service.catalog.trie import LEVELS, Int64, Trie, build_trie


@dataclass(frozen=True, slots=True)
class IndexedItem:
    """What serving needs of an item. codes: None until it is encoded for the active base."""

    item_id: str
    title: str
    categories: tuple[str, ...]
    available: bool
    codes: tuple[int, int, int, int] | None


@dataclass(frozen=True, eq=False)
class CatalogueIndex:
    """Items by row. Unavailable and deleted items keep a row: they may stand in a history, and training needs them.

    revision: the catalogue revision it reflects; base_id: the base whose codes it holds (None: no base yet).
    """

    items: tuple[IndexedItem, ...]
    revision: int
    base_id: str | None

    @classmethod
    def of(
        cls,
        items: Iterable[StoredItem],
        codes: Mapping[str, Codes],
        *,
        revision: int = 0,
        base_id: str | None = None,
    ) -> "CatalogueIndex":
        """Rows in order of item_id, so that every process numbers them alike. codes: of the items that have some."""
        rows = (
            IndexedItem(item.item_id, item.title, item.categories, item.servable, codes.get(item.item_id))
            for item in sorted(items, key=lambda item: item.item_id)
        )
        return cls(tuple(rows), revision, base_id)

    @cached_property
    def row_of(self) -> Mapping[str, int]:
        return {item.item_id: row for row, item in enumerate(self.items)}

    @cached_property
    def codes(self) -> NDArray[np.int16]:
        """int16 [rows, 4], -1 where an item has none."""
        none = (-1,) * LEVELS
        return np.array([item.codes or none for item in self.items], dtype=np.int16).reshape(-1, LEVELS)

    @cached_property
    def coded(self) -> NDArray[np.bool_]:
        """bool [rows], whether the item has a semantic ID."""
        return np.asarray((self.codes >= 0).all(axis=1))

    @cached_property
    def available(self) -> NDArray[np.bool_]:
        return np.array([item.available for item in self.items], dtype=np.bool_)

    @cached_property
    def trie(self) -> Trie:
        """Over available items with codes."""
        return build_trie(self.codes, self.available)

    @cached_property
    def rows_by_category(self) -> Mapping[str, Int64]:
        """Category (lower case) -> rows, rising."""
        rows: dict[str, list[int]] = {}
        for row, item in enumerate(self.items):
            for category in {c.casefold() for c in item.categories}:
                rows.setdefault(category, []).append(row)
        return {category: np.array(own, dtype=np.int64) for category, own in rows.items()}

    def rows(self, item_ids: Iterable[str]) -> Int64:
        """int64: rows of the known ids among `item_ids`, in their order."""
        row_of = self.row_of
        return np.array([row_of[i] for i in item_ids if i in row_of], dtype=np.int64)

    def with_codes(self, rows: Int64) -> Int64:
        """Those of `rows` that have codes, in their order."""
        return rows[self.coded[rows]]


EMPTY = CatalogueIndex((), 0, None)
