"""How the codes of a catalogue are used, and what lies near an item in them. Pure NumPy over one snapshot."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from service.catalog.index import CatalogueIndex
from service.catalog.trie import CODES, LEVELS, Int64, Trie

STEP = 500_000  # rows at a time, so that no other thread waits long for the interpreter


@dataclass(frozen=True, slots=True, eq=False)
class LevelUsage:
    """counts: int64 [256], items with each code at this level."""

    counts: Int64

    @property
    def used(self) -> int:
        return int(np.count_nonzero(self.counts))

    @property
    def entropy(self) -> float:
        """Bits, 0 to 8."""
        total = self.counts.sum()
        if not total:
            return 0.0
        share = self.counts[self.counts > 0] / total
        return max(0.0, float(-(share * np.log2(share)).sum()))

    @property
    def perplexity(self) -> float:
        """2^entropy: as many equally used codes would be as even; 256 is best, 0 without items."""
        return float(2**self.entropy) if self.counts.any() else 0.0


@dataclass(frozen=True, slots=True)
class Collision:
    """rows: the first of the items that share a semantic ID; items: how many there are."""

    codes: tuple[int, ...]
    items: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Collisions:
    """groups: semantic IDs that several items share; items: how many items share theirs; largest first."""

    groups: int
    items: int
    largest: tuple[Collision, ...]


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Items that share exactly the first `levels` codes with an item. total: all of them; rows: the first ones."""

    levels: int
    total: int
    rows: tuple[int, ...]


def level_usage(index: CatalogueIndex) -> tuple[LevelUsage, ...]:
    """Of the items that can be recommended and have codes, one for each level."""
    counts = np.zeros((LEVELS, CODES), dtype=np.int64)
    for rows in _steps(len(index.items)):
        own = index.codes[rows][index.available[rows] & index.coded[rows]]
        for level in range(LEVELS):
            counts[level] += np.bincount(own[:, level], minlength=CODES)
    return tuple(LevelUsage(of_level) for of_level in counts)


def collisions(trie: Trie, largest: int, shown: int) -> Collisions:
    """Items of the trie that share a semantic ID; the `largest` groups with `shown` items of each."""
    sizes = np.diff(trie.row_start)
    shared = np.flatnonzero(sizes > 1)
    order = shared[np.argsort(-sizes[shared], kind="stable")][:largest]
    codes = [tuple(int(trie.code[d][trie.node_of_leaf[d][leaf]]) for d in range(LEVELS)) for leaf in order.tolist()]
    found = [
        Collision(own, int(sizes[leaf]), tuple(trie.rows_of(leaf)[:shown].tolist()))
        for own, leaf in zip(codes, order.tolist(), strict=True)
    ]
    return Collisions(len(shared), int(sizes[shared].sum()), tuple(found))


def neighbours(trie: Trie, codes: tuple[int, ...], row: int, shown: int) -> list[Neighbours]:
    """Items of the trie by how much of `codes` they share: all 4 levels, then 3, 2 and 1; `row` itself is left out."""
    found: list[Neighbours] = []
    inner = (0, 0)  # leaves that were counted already
    for levels in range(LEVELS, 0, -1):
        outer = trie.leaves_below(codes[:levels])
        rows: list[int] = []
        total = 0
        for first, end in ((outer[0], inner[0]), (inner[1], outer[1])) if inner != (0, 0) else (outer,):
            start, stop = int(trie.row_start[first]), int(trie.row_start[end])
            total += stop - start
            rows += trie.rows[start : min(stop, start + shown + 1)].tolist()
        if levels == LEVELS and outer != (0, 0):
            held = int(trie.leaf_of_row[row]) if 0 <= row < len(trie.leaf_of_row) else -1
            total -= outer[0] <= held < outer[1]
        found.append(Neighbours(levels, total, tuple(other for other in rows if other != row)[:shown]))
        inner = outer
    return found


def _steps(rows: int) -> Iterator[slice]:
    for start in range(0, rows, STEP):
        yield slice(start, min(start + STEP, rows))
