"""Places for cold items: those with few interactions so far, which nobody would otherwise get to see."""

import hashlib

import numpy as np

from service.catalog.index import CatalogueIndex
from service.catalog.trie import Int64
from service.recommend.ranking import Float64


def slots(recommendation_id: str, share: float, limit: int) -> int:
    """How many places of a list of `limit` are explored: share * limit, its fraction by a coin.

    The coin falls the same way each time for the same id; over many lists the share is exact.
    """
    wanted = share * limit
    whole = int(wanted)
    return min(limit, whole + (_fraction(recommendation_id) < wanted - whole))


def cold_rows(index: CatalogueIndex, popularity: Float64, interaction: float, fewer_than: int) -> Int64:
    """int64, rising: available rows with fewer than so many interactions, of which older ones count less.

    popularity: float64 [rows]; interaction: what one of now weighs there.
    """
    return np.flatnonzero(index.available & ((popularity < fewer_than * interaction) | (popularity == 0)))


def drawn(recommendation_id: str, rows: Int64, count: int) -> Int64:
    """int64: up to `count` of `rows`, each as likely as any other; the same each time for the same id."""
    seed = int.from_bytes(hashlib.blake2b(recommendation_id.encode(), digest_size=8).digest())
    return np.random.default_rng(seed).choice(rows, min(count, len(rows)), replace=False)


def _fraction(recommendation_id: str) -> float:
    """0 to 1, evenly."""
    return int.from_bytes(hashlib.blake2b(recommendation_id.encode(), digest_size=6).digest()) / 2**48
