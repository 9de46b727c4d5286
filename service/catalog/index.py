"""The catalogue in memory: one immutable snapshot that a request holds from its first line to its reply."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from service.catalog.repository import Codes, StoredItem
from service.catalog.trie import LEVELS, Int16, Int64, Trie, as_codes, build_trie
from service.catalog.trie_changes import changed_trie
from service.kit.chunks import Chunks

NO_CODES = (-1,) * LEVELS
FEW = 50  # one row in as many may change before building the trie anew is as fast (decision 0011)


@dataclass(frozen=True, slots=True)
class IndexedItem:
    """What serving needs of an item. codes: None until it is encoded for the active base.

    available: may be recommended; deleted: hidden for good, which also makes it not available.
    """

    item_id: str
    title: str
    categories: tuple[str, ...]
    available: bool
    codes: tuple[int, int, int, int] | None
    brand: str | None = None
    deleted: bool = False

    @classmethod
    def of(cls, item: StoredItem, codes: Codes | None) -> "IndexedItem":
        # A category, or a brand, is one string for all items that have it.
        brand = sys.intern(item.brand) if item.brand else None
        categories = tuple(map(sys.intern, item.categories))
        return cls(item.item_id, item.title, categories, item.servable, codes, brand, item.deleted_at is not None)

    @property
    def searched(self) -> Codes | None:
        """The codes if the item may be found by them."""
        return self.codes if self.available else None


@dataclass(frozen=True, eq=False)
class CatalogueIndex:
    """Items by row. Unavailable and deleted items keep a row: they may stand in a history, and training needs them.

    revision: the catalogue revision it reflects; base_id: the base whose codes it holds (None: no base yet).
    """

    items: Sequence[IndexedItem]
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
        """Rows in order of creation, then of item_id. codes: of the items that have some.

        A snapshot that follows another keeps its rows and adds new items behind them, so processes number items alike
        as far as their clocks agree. Nothing but ties depends on it.
        """
        ordered = sorted(items, key=lambda item: (item.created_at, item.item_id))
        return cls(Chunks(IndexedItem.of(item, codes.get(item.item_id)) for item in ordered), revision, base_id)

    def changed(self, items: Mapping[str, IndexedItem], *, revision: int) -> "CatalogueIndex":
        """The snapshot after `items` (by item_id) were written: known ones in their rows, others in new rows, in order.

        Costs passes over arrays, and nothing in Python for the items that stay. At most one thread at a time may ask
        for successors of the snapshots that come from one another; readers need not wait.
        """
        row_of, count = self._numbering, len(self.items)
        if len(row_of) > count:  # another successor has taken the numbers
            row_of = dict(islice(row_of.items(), count))
        rows = [row_of.get(item_id, -1) for item_id in items]
        added = [item for row, item in zip(rows, items.values(), strict=True) if row < 0]
        replaced = {row: item for row, item in zip(rows, items.values(), strict=True) if row >= 0}
        row_of.update((item.item_id, row) for row, item in enumerate(added, count))
        held = self.items if isinstance(self.items, Chunks) else Chunks(self.items)
        index = CatalogueIndex(held.changed(replaced, added), revision, self.base_id)
        known: dict[str, object] = {"_numbering": row_of}
        if len(items) * FEW <= count:
            known |= self._changed_arrays({**replaced, **dict(enumerate(added, count))}, count + len(added))
        vars(index).update(known)  # in place of what the cached properties would compute from every item
        return index

    def _changed_arrays(self, items: Mapping[int, IndexedItem], total: int) -> dict[str, object]:
        """The successor's cached properties; items: row -> what it is now."""
        rows = np.fromiter(items, dtype=np.int64, count=len(items))
        codes, available = np.full((total, LEVELS), -1, dtype=np.int16), np.zeros(total, dtype=np.bool_)
        codes[: len(self.codes)], available[: len(self.codes)] = self.codes, self.available
        codes[rows] = as_codes([item.codes or NO_CODES for item in items.values()])
        available[rows] = [item.available for item in items.values()]
        searched = as_codes([item.searched or NO_CODES for item in items.values()])
        return {
            "codes": codes,
            "coded": np.asarray((codes >= 0).all(axis=1)),
            "available": available,
            "trie": changed_trie(self.trie, rows, searched, total),
            "rows_by_category": self._changed_names(self.rows_by_category, items, category_names),
            "rows_by_brand": self._changed_names(self.rows_by_brand, items, _brands),
        }

    def _changed_names(
        self, held: Mapping[str, Int64], items: Mapping[int, IndexedItem], names: Callable[[IndexedItem], set[str]]
    ) -> Mapping[str, Int64]:
        """`held`, name -> rows, after `items` changed; names: those of an item."""
        fewer: dict[str, list[int]] = {}
        more: dict[str, list[int]] = {}
        for row, item in items.items():
            now = names(item)
            before = names(self.items[row]) if row < len(self.items) else set()
            for name in before - now:
                fewer.setdefault(name, []).append(row)
            for name in now - before:
                more.setdefault(name, []).append(row)
        if not fewer and not more:
            return held
        changed = dict(held)
        nothing = np.empty(0, dtype=np.int64)
        for name in fewer.keys() | more.keys():
            kept = np.setdiff1d(changed.get(name, nothing), fewer.get(name, ()), assume_unique=True)
            own = np.union1d(kept, more.get(name, ())).astype(np.int64)
            if len(own):
                changed[name] = own
            else:
                del changed[name]
        return changed

    def numbered_like(self, other: "CatalogueIndex") -> bool:
        """Whether one came from the other: the rows of the shorter one are the first rows of the longer one."""
        return self._numbering is other._numbering

    def load(self) -> "CatalogueIndex":
        """Compute now what a request would have to wait for; returns itself."""
        _ = self.codes, self.coded, self.available, self.trie, self.row_of, self.rows_by_category, self.rows_by_brand
        return self

    @cached_property
    def _numbering(self) -> dict[str, int]:
        """item_id -> row. Shared with later snapshots, which add to it: rows from len(items) on are theirs."""
        return {item.item_id: row for row, item in enumerate(self.items)}

    @cached_property
    def row_of(self) -> Mapping[str, int]:
        return _RowOf(self._numbering, self.items)

    @cached_property
    def codes(self) -> Int16:
        """int16 [rows, 4], -1 where an item has none."""
        return as_codes([item.codes or NO_CODES for item in self.items])

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
        return self._rows_by(category_names)

    @cached_property
    def rows_by_brand(self) -> Mapping[str, Int64]:
        """Brand (lower case) -> rows, rising."""
        return self._rows_by(_brands)

    def _rows_by(self, names: Callable[[IndexedItem], set[str]]) -> Mapping[str, Int64]:
        rows: dict[str, list[int]] = {}
        for row, item in enumerate(self.items):
            for name in names(item):
                rows.setdefault(name, []).append(row)
        return {name: np.array(own, dtype=np.int64) for name, own in rows.items()}

    def rows(self, item_ids: Iterable[str]) -> Int64:
        """int64: rows of the known ids among `item_ids`, in their order."""
        row_of, count = self._numbering, len(self.items)
        found = [row for item_id in item_ids if (row := row_of.get(item_id, count)) < count]
        return np.array(found, dtype=np.int64)

    def with_codes(self, rows: Int64) -> Int64:
        """Those of `rows` that have codes, in their order."""
        return rows[self.coded[rows]]


class _RowOf(Mapping[str, int]):
    """item_id -> row, as far as one snapshot goes."""

    def __init__(self, numbering: Mapping[str, int], items: Sequence[IndexedItem]) -> None:
        self._numbering = numbering
        self._items = items

    def __getitem__(self, item_id: str) -> int:
        row = self._numbering[item_id]
        if row >= len(self._items):
            raise KeyError(item_id)
        return row

    def __iter__(self) -> Iterator[str]:
        return (item.item_id for item in self._items)

    def __len__(self) -> int:
        return len(self._items)


def category_names(item: IndexedItem) -> set[str]:
    return {category.casefold() for category in item.categories}


def _brands(item: IndexedItem) -> set[str]:
    return {item.brand.casefold()} if item.brand else set()


EMPTY = CatalogueIndex((), 0, None)
