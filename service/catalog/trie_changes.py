"""The next Trie from the held one and a few changed rows: linear passes over its arrays, nothing is sorted anew.

Each numbering of a trie (nodes of a depth, leaves, places in `rows`) loses and gains a few entries. An array over it is
copied in the pieces between them, and the numbers that point past them shift. What comes out is, array by array, what
build_trie gives for the changed catalogue (docs/decisions/0011-the-next-trie-is-merged-from-the-held-one.md).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.catalog.trie import LEVELS, Int16, Int32, Int64, Trie, pack

Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class _Edit:
    """What one numbering loses and gains.

    gone: int64, the entries that go, rising. at: int64, entries before which a new one comes in, rising.
    """

    gone: Int64
    at: Int64

    def place(self, entries: Int64) -> Int64:
        """int64: their new numbers; for one that goes, that of the next that stays."""
        return (
            entries + np.searchsorted(self.at, entries, side="right") - np.searchsorted(self.gone, entries, side="left")
        )

    @property
    def places(self) -> Int64:
        """int64: the new numbers of those that come in."""
        return self.at + np.arange(len(self.at)) - np.searchsorted(self.gone, self.at, side="left")

    def after(self, entries: Int64) -> Int64:
        """int64: the first new number behind each entry, whether it stays or goes."""
        return self.place(entries) + ~np.isin(entries, self.gone)

    def apply(self, array: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
        """A new array without what goes and with `values` for what comes in."""
        places, firsts = np.unique(self.at, return_index=True)
        ends = np.append(firsts, len(self.at))[1:]
        cuts = [(place, 0, first, end) for place, first, end in zip(places.tolist(), firsts, ends, strict=True)]
        cuts += [(place, 1, 0, 0) for place in self.gone.tolist()]
        values = values.astype(array.dtype, copy=False)
        pieces, start = [], 0
        for place, goes, first, end in sorted(cuts):
            pieces += [array[start:place], values[first:end]]
            start = place + goes
        return np.concatenate([*pieces, array[start:]])


def changed_trie(trie: Trie, rows: Int64, codes: Int16, total: int) -> Trie:
    """`trie` after some rows changed. The held one stays as it is: whoever searches it goes on.

    rows: int64 [m], each once, any order. codes: int16 [m, 4], what each row has now; -1 where it is not in the trie
    (hidden, or without a semantic ID). total: catalogue rows now, not fewer than before; rows that are new and not
    among `rows` are not in the trie. The same object comes back when nothing changes.
    """
    held = np.full(len(rows), -1, dtype=np.int64)
    known = rows < len(trie.leaf_of_row)
    held[known] = trie.leaf_of_row[rows[known]]
    before, now = np.full(len(rows), -1), np.where((codes >= 0).all(axis=1), pack(codes), -1)
    before[held >= 0] = pack(_codes_of(trie, held[held >= 0]))
    if total == len(trie.leaf_of_row) and np.array_equal(before, now):
        return trie
    out, into = _ordered(rows, before, before != now), _ordered(rows, now, before != now)
    out_rows, out_leaf, in_rows = rows[out], held[out], rows[into]
    paths, path_of_row = np.unique(now[into], return_inverse=True)
    at, found = _walk(trie, paths)

    in_leaf, shared = at[LEVELS][path_of_row], found[LEVELS][path_of_row]
    low = trie.row_start[in_leaf].astype(np.int64)
    high = np.where(shared, trie.row_start[np.minimum(in_leaf + 1, trie.leaves)], low).astype(np.int64)
    out_low, out_high = (trie.row_start[out_leaf + end].astype(np.int64) for end in (0, 1))
    places = _Edit(
        gone=_lower_bound(trie.rows, out_low, out_high, out_rows), at=_lower_bound(trie.rows, low, high, in_rows)
    )
    fewer = _emptied(out_leaf, in_leaf[shared], np.diff(trie.row_start))
    more = np.flatnonzero(~found[LEVELS])  # the paths that become leaves

    # Per depth 0..4 (depth 0 is the root): what the nodes' numbering loses and gains, and of each leaf that goes its
    # old node, of each path its new one. A node goes with its last leaf and comes in with its first.
    root = np.empty(0, dtype=np.int64)
    edits = [_Edit(root, root)]
    old_node = [np.zeros(len(fewer), dtype=np.int64)]
    new_node = [np.zeros(len(paths), dtype=np.int64)]
    firsts = [root]  # of each node that comes in, its first path
    for depth in range(1, LEVELS + 1):
        absent = np.flatnonzero(~found[depth])
        _, first, which = np.unique(paths[absent] >> (8 * (LEVELS - depth)), return_index=True, return_inverse=True)
        nodes = trie.node_of_leaf[depth - 1][fewer].astype(np.int64)
        edit = _Edit(
            _emptied(nodes, at[depth][more][found[depth][more]], trie.leaf_count[depth - 1]), at[depth][absent][first]
        )
        own = edit.place(at[depth])
        own[absent] = edit.places[which]
        edits.append(edit)
        old_node.append(nodes)
        new_node.append(own)
        firsts.append(absent[first])

    code: list[Int16] = []
    child_start: list[Int32] = []
    node_of_leaf: list[Int32] = []
    leaf_count: list[Int32] = []
    leaf_edit = edits[LEVELS]
    for depth in range(1, LEVELS + 1):
        above, edit = edits[depth - 1], edits[depth]
        last_path, last_leaf = firsts[depth], np.searchsorted(old_node[depth], edit.gone)
        code.append(edit.apply(trie.code[depth - 1], paths[last_path] >> (8 * (LEVELS - depth)) & 0xFF))
        child_start.append(
            _starts(trie.child_start[depth - 1], above, old_node[depth - 1][last_leaf], new_node[depth - 1][last_path])
        )
        counts = edit.apply(trie.leaf_count[depth - 1], np.zeros(len(edit.at)))
        np.add.at(counts, new_node[depth][more], 1)
        staying = old_node[depth][~np.isin(old_node[depth], edit.gone)]
        np.subtract.at(counts, edit.place(staying), 1)
        leaf_count.append(counts)
        ancestors = leaf_edit.apply(trie.node_of_leaf[depth - 1], np.zeros(len(leaf_edit.at)))
        _shift(ancestors, new_node[LEVELS][last_path], leaf_edit.place(fewer[last_leaf]))
        ancestors[leaf_edit.places] = new_node[depth][more]
        node_of_leaf.append(ancestors)

    renumbered = np.arange(trie.leaves + 1, dtype=np.int32)
    _shift(renumbered, leaf_edit.at, leaf_edit.gone + 1)
    renumbered[-1] = -1  # what -1 finds: a row without a leaf
    leaf_of_row = np.full(total, -1, dtype=np.int32)
    np.take(renumbered, trie.leaf_of_row, out=leaf_of_row[: len(trie.leaf_of_row)], mode="wrap")
    leaf_of_row[out_rows] = -1
    leaf_of_row[in_rows] = new_node[LEVELS][path_of_row]
    return Trie(
        code=tuple(code),
        child_start=tuple(child_start),
        node_of_leaf=tuple(node_of_leaf),
        leaf_count=tuple(leaf_count),
        row_start=_starts(trie.row_start, leaf_edit, out_leaf, new_node[LEVELS][path_of_row]),
        rows=places.apply(trie.rows, in_rows),
        leaf_of_row=leaf_of_row,
    )


def _ordered(rows: Int64, packed: Int64, changed: Bool) -> Int64:
    """int64: which of `rows` changed and have (or had) a leaf, in the order of Trie.rows."""
    chosen = np.flatnonzero(changed & (packed >= 0))
    return chosen[np.lexsort((rows[chosen], packed[chosen]))]


def _codes_of(trie: Trie, leaves: Int64) -> Int16:
    columns = [code[ancestor[leaves]] for code, ancestor in zip(trie.code, trie.node_of_leaf, strict=True)]
    return np.stack(columns, axis=1)


def _walk(trie: Trie, paths: Int64) -> tuple[list[Int64], list[Bool]]:
    """Per depth 0..4, for each packed path: the first node that does not lie before it, and whether it is its own."""
    node, there = np.zeros(len(paths), dtype=np.int64), np.ones(len(paths), dtype=np.bool_)
    at, found = [node], [there]
    for depth, (start, code) in enumerate(zip(trie.child_start, trie.code, strict=True), 1):
        wanted = paths >> (8 * (LEVELS - depth)) & 0xFF
        low = start[node].astype(np.int64)
        high = np.where(there, start[np.minimum(node + 1, len(start) - 1)], low).astype(np.int64)
        node = _lower_bound(code, low, high, wanted)
        there = node < high
        there[there] = code[node[there]] == wanted[there]
        at.append(node)
        found.append(there)
    return at, found


def _lower_bound(values: NDArray[Any], low: Int64, high: Int64, wanted: Int64) -> Int64:
    """int64: in each rising range values[low:high] the first place whose value is not below the wanted one."""
    low, high = low.copy(), high.copy()
    while (open_ := np.flatnonzero(low < high)).size:
        middle = (low[open_] + high[open_]) // 2
        below = values[middle] < wanted[open_]
        low[open_[below]] = middle[below] + 1
        high[open_[~below]] = middle[~below]
    return low


def _emptied(losing: Int64, gaining: Int64, sizes: NDArray[Any]) -> Int64:
    """int64, rising: entries that lose all they have, one for each time they are in `losing`, and gain nothing."""
    met, lost = np.unique(losing, return_counts=True)
    emptied: Int64 = met[(sizes[met] == lost) & ~np.isin(met, gaining)]
    return emptied


def _starts(held: Int32, edit: _Edit, losing: Int64, gaining: Int64) -> Int32:
    """Where each parent's children begin, after one child less for each old parent in `losing` and one more for each
    new parent in `gaining`; edit: the parents' numbering."""
    starts: Int32 = edit.apply(held, held[edit.at])
    _shift(starts, gaining + 1, edit.after(losing))
    return starts


def _shift(numbers: Int32, up: Int64, down: Int64) -> None:
    """Add 1 from each place in `up` to the end, subtract 1 from each in `down`; in place."""
    places = np.concatenate([up, down])
    steps = np.concatenate([np.ones(len(up), dtype=np.int32), np.full(len(down), -1, dtype=np.int32)])
    places, which = np.unique(places, return_inverse=True)
    by = np.cumsum(np.bincount(which, weights=steps).astype(np.int32), dtype=np.int32)
    for place, end, step in zip(
        places.tolist(), np.append(places, len(numbers))[1:].tolist(), by.tolist(), strict=True
    ):
        if step:
            numbers[place:end] += step
