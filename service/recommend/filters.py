"""A request's filters -> the rows that meet them."""

from collections.abc import Iterable
from functools import reduce

import numpy as np

from service.catalog.index import CatalogueIndex
from service.catalog.trie import Int64
from service.recommend.schemas import Filters

NOTHING = np.empty(0, dtype=np.int64)


def matching(index: CatalogueIndex, filters: Filters) -> Int64:
    """int64, rising: available rows that meet every condition given, of which there is at least one."""
    conditions = []
    if filters.category is not None:
        conditions.append(index.rows_by_category.get(filters.category.casefold(), NOTHING))
    if filters.categories is not None:
        wanted = dict.fromkeys(name.casefold() for name in filters.categories)
        conditions.append(_union(index.rows_by_category.get(name, NOTHING) for name in wanted))
    if filters.brand is not None:
        conditions.append(index.rows_by_brand.get(filters.brand.casefold(), NOTHING))
    if filters.item_ids is not None:
        conditions.append(np.unique(index.rows(filters.item_ids)))
    rows = reduce(lambda one, other: np.intersect1d(one, other, assume_unique=True), sorted(conditions, key=len))
    return rows[index.available[rows]]


def without(rows: Int64, excluded: Int64) -> Int64:
    """`rows` that are not among `excluded` (int64, any order, repeats allowed)."""
    return rows if not len(excluded) else rows[~np.isin(rows, excluded)]


def _union(parts: Iterable[Int64]) -> Int64:
    own = [part for part in parts if len(part)]
    return own[0] if len(own) == 1 else np.unique(np.concatenate([NOTHING, *own]))
