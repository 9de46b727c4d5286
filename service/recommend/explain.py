"""Why an item: the item of the user's history whose semantic ID it shares the most levels with."""

import numpy as np

from service.catalog.index import CatalogueIndex
from service.catalog.trie import LEVELS, Int64
from service.recommend.similar import shared_levels

POPULAR = "popular with all users lately"


def reasons(index: CatalogueIndex, row: int, history: Int64) -> list[str]:
    """Sentences; empty when no history item shares even the first level. history: rows with codes, oldest first."""
    if not len(history):
        return []
    shared = shared_levels(index, row, history)
    best = len(shared) - 1 - int(np.argmax(shared[::-1]))  # of equals the most recent
    if shared[best] == 0:
        return []
    title = index.items[int(history[best])].title
    return [f"close to «{title}» from your history: shares {int(shared[best])} of {LEVELS} semantic levels"]
