"""The sparse index of valid semantic IDs: immutable arrays that a search can walk without a Python loop.

Nodes of one depth are numbered in lexicographic order of their prefixes, so a node's children are a range of the next
depth (CSR) and the leaves below a node are a range of leaves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVELS = 4
CODES = 256

Int16 = NDArray[np.int16]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Trie:
    """Valid semantic IDs and the catalogue rows that carry each.

    code: per depth 1..4, int16 [nodes], the code that leads to the node.
    child_start: per depth 0..3, int64 [nodes + 1]; children of node i are child_start[i] .. child_start[i + 1].
    node_of_leaf: per depth 1..4, int64 [leaves], each leaf's ancestor (at depth 4: itself).
    leaf_count: per depth 1..4, int64 [nodes], leaves below the node.
    row_start: int64 [leaves + 1] and rows: int64 [items]; the rows of leaf i are rows[row_start[i] : row_start[i + 1]].
    leaf_of_row: int64 [catalogue rows], -1 for a row that is not in the trie.
    """

    code: tuple[Int16, ...]
    child_start: tuple[Int64, ...]
    node_of_leaf: tuple[Int64, ...]
    leaf_count: tuple[Int64, ...]
    row_start: Int64
    rows: Int64
    leaf_of_row: Int64

    @property
    def leaves(self) -> int:
        return len(self.row_start) - 1

    @property
    def leaf_codes(self) -> Int16:
        """int16 [leaves, 4], the semantic ID of each leaf."""
        columns = [self.code[depth][self.node_of_leaf[depth]] for depth in range(LEVELS)]
        return np.stack(columns, axis=1).astype(np.int16, copy=False)

    def rows_of(self, leaf: int) -> Int64:
        """Catalogue rows that share a leaf's semantic ID."""
        start, end = self.row_start[leaf : leaf + 2].tolist()
        own: Int64 = self.rows[start:end]
        return own

    def excluded_leaves(self, rows: Int64) -> Int64:
        """Leaves all of whose rows are among `rows` (int64 [m], any order, repeats allowed), rising."""
        held = self.leaf_of_row[np.unique(rows)]
        leaves, counts = np.unique(held[held >= 0], return_counts=True)
        whole: Int64 = leaves[counts == self.row_start[leaves + 1] - self.row_start[leaves]]
        return whole

    def dead_nodes(self, leaves: Int64) -> tuple[Int64, ...]:
        """Per depth 1..4 the nodes all of whose leaves are among `leaves` (int64, unique), rising."""
        dead = []
        for ancestor, total in zip(self.node_of_leaf, self.leaf_count, strict=True):
            nodes, counts = np.unique(ancestor[leaves], return_counts=True)
            dead.append(nodes[counts == total[nodes]])
        return tuple(dead)


def build_trie(codes: Int16, present: NDArray[np.bool_] | None = None) -> Trie:
    """The trie over rows of `codes` (int16 [rows, 4], -1 anywhere in a row: the row has no semantic ID).

    present: bool [rows], rows to take in; all by default. An empty trie is valid.
    """
    codes = np.asarray(codes, dtype=np.int16).reshape(-1, LEVELS)
    taken = (codes >= 0).all(axis=1)
    if present is not None:
        taken &= present
    rows = np.flatnonzero(taken)
    packed = pack(codes[rows])
    order = np.argsort(packed, kind="stable")
    rows, packed = rows[order], packed[order]
    leaf_packed, row_start = np.unique(packed, return_index=True)
    leaf_of_row = np.full(len(codes), -1, dtype=np.int64)
    leaf_of_row[rows] = np.searchsorted(leaf_packed, packed)
    code: list[Int16] = []
    child_start: list[Int64] = []
    node_of_leaf: list[Int64] = []
    leaf_count: list[Int64] = []
    parent_prefix = np.zeros(1, dtype=np.int64)
    for depth in range(1, LEVELS + 1):
        shift = 8 * (LEVELS - depth)
        prefix, inverse, counts = np.unique(leaf_packed >> shift, return_inverse=True, return_counts=True)
        code.append((prefix & 0xFF).astype(np.int16))
        child_start.append(np.append(np.searchsorted(prefix >> 8, parent_prefix), len(prefix)).astype(np.int64))
        node_of_leaf.append(inverse.astype(np.int64))
        leaf_count.append(counts.astype(np.int64))
        parent_prefix = prefix
    return Trie(
        code=tuple(code),
        child_start=tuple(child_start),
        node_of_leaf=tuple(node_of_leaf),
        leaf_count=tuple(leaf_count),
        row_start=np.append(row_start, len(rows)).astype(np.int64),
        rows=rows.astype(np.int64),
        leaf_of_row=leaf_of_row,
    )


def pack(codes: Int16) -> Int64:
    """int64 [n]: four codes in one number that sorts like the codes do."""
    packed = np.zeros(len(codes), dtype=np.int64)
    for level in range(LEVELS):
        packed = (packed << 8) | codes[:, level].astype(np.int64)
    return packed


def empty_trie() -> Trie:
    return build_trie(np.empty((0, LEVELS), dtype=np.int16))


def as_codes(codes: Sequence[Sequence[int]]) -> Int16:
    """int16 [n, 4] from any nested sequence; [0, 4] from an empty one."""
    return np.asarray(codes, dtype=np.int16).reshape(-1, LEVELS)
