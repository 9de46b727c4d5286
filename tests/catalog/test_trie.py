"""The sparse index of valid semantic IDs, by hand and against a trie of nested dictionaries."""

from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.catalog.trie import LEVELS, Trie, as_codes, build_trie, empty_trie, pack

# Rows 1 and 4 share a semantic ID; row 3 has none; row 5 lies alone under its first code.
SMALL = as_codes([[1, 2, 3, 4], [0, 9, 9, 9], [1, 2, 3, 200], [-1, -1, -1, -1], [0, 9, 9, 9], [255, 0, 0, 0]])

NaiveTrie = dict[tuple[int, ...], list[int]]  # semantic ID -> rows


def naive(codes: list[list[int]], present: list[bool]) -> NaiveTrie:
    leaves: NaiveTrie = defaultdict(list)
    for row, (own, here) in enumerate(zip(codes, present, strict=True)):
        if here and -1 not in own:
            leaves[tuple(own)].append(row)
    return dict(sorted(leaves.items()))


def walk(trie: Trie) -> NaiveTrie:
    """All leaves, found by going down child ranges from the root."""
    paths: list[tuple[int, ...]] = [()]
    for depth in range(LEVELS):
        start, code = trie.child_start[depth], trie.code[depth]
        assert len(start) == len(paths) + 1
        paths = [(*path, int(code[c])) for i, path in enumerate(paths) for c in range(start[i], start[i + 1])]
        assert len(paths) == len(code)
    return {path: trie.rows_of(leaf).tolist() for leaf, path in enumerate(paths)}


catalogues = st.lists(
    st.tuples(
        st.lists(st.sampled_from([0, 1, 7, 255]), min_size=LEVELS, max_size=LEVELS),
        st.sampled_from(["coded", "coded", "coded", "without codes", "half coded"]),
        st.booleans(),
    ),
    max_size=40,
).map(
    lambda items: (
        [{"coded": c, "without codes": [-1] * LEVELS, "half coded": [*c[:3], -1]}[kind] for c, kind, _ in items],
        [present for _, _, present in items],
    )
)


def test_a_small_catalogue_gives_the_arrays_that_one_draws_by_hand() -> None:
    trie = build_trie(SMALL)

    assert trie.leaves == 4
    assert [c.tolist() for c in trie.code] == [[0, 1, 255], [9, 2, 0], [9, 3, 0], [9, 4, 200, 0]]
    assert [s.tolist() for s in trie.child_start] == [[0, 3], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 3, 4]]
    assert [n.tolist() for n in trie.node_of_leaf] == [[0, 1, 1, 2], [0, 1, 1, 2], [0, 1, 1, 2], [0, 1, 2, 3]]
    assert [n.tolist() for n in trie.leaf_count] == [[1, 2, 1], [1, 2, 1], [1, 2, 1], [1, 1, 1, 1]]
    assert trie.leaf_codes.tolist() == [[0, 9, 9, 9], [1, 2, 3, 4], [1, 2, 3, 200], [255, 0, 0, 0]]
    assert trie.leaf_codes.dtype == np.int16
    assert trie.leaf_of_row.tolist() == [1, 0, 2, -1, 0, 3]


def test_rows_with_one_semantic_id_share_a_leaf_and_rise() -> None:
    trie = build_trie(SMALL)

    assert [trie.rows_of(leaf).tolist() for leaf in range(4)] == [[1, 4], [0], [2], [5]]


def test_a_row_that_is_not_present_has_no_leaf() -> None:
    trie = build_trie(SMALL, np.array([True, False, True, True, True, False]))

    assert trie.leaf_codes.tolist() == [[0, 9, 9, 9], [1, 2, 3, 4], [1, 2, 3, 200]]
    assert trie.rows_of(0).tolist() == [4]
    assert trie.leaf_of_row.tolist() == [1, -1, 2, -1, 0, -1]


def test_a_leaf_is_excluded_only_when_all_its_rows_are() -> None:
    trie = build_trie(SMALL)

    def excluded(*rows: int) -> list[int]:
        return trie.excluded_leaves(np.array(rows, dtype=np.int64)).tolist()

    assert excluded() == []
    assert excluded(1) == []
    assert excluded(1, 1) == []  # a repeat is not the other row
    assert excluded(4, 1) == [0]
    assert excluded(5, 3, 0) == [1, 3]  # row 3 has no codes


def test_a_node_is_dead_when_no_leaf_below_it_is_left() -> None:
    trie = build_trie(SMALL)

    def dead(*leaves: int) -> list[list[int]]:
        return [dead.node.tolist() for dead in trie.dead_nodes(np.array(leaves, dtype=np.int64))]

    assert dead() == [[], [], [], []]
    assert dead(1) == [[], [], [], [1]]  # its sibling keeps the prefix alive
    assert dead(1, 2) == [[1], [1], [1], [1, 2]]
    assert dead(0, 1, 2, 3) == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2, 3]]


def test_an_empty_trie_answers_every_question() -> None:
    for trie in (empty_trie(), build_trie(as_codes([])), build_trie(SMALL, np.zeros(6, dtype=bool))):
        assert trie.leaves == 0
        assert trie.leaf_codes.shape == (0, LEVELS)
        assert walk(trie) == {}
        nothing = np.empty(0, dtype=np.int64)
        assert trie.excluded_leaves(nothing).tolist() == []
        assert [dead.node.tolist() for dead in trie.dead_nodes(nothing)] == [[], [], [], []]
    assert trie.excluded_leaves(np.arange(6)).tolist() == []


def test_packed_codes_sort_as_the_codes_do() -> None:
    codes = as_codes([[0, 0, 0, 255], [0, 0, 1, 0], [0, 255, 255, 255], [1, 0, 0, 0], [255, 255, 255, 255]])

    assert np.all(np.diff(pack(codes)) > 0)
    assert pack(codes)[-1] == 2**32 - 1


@given(catalogues)
def test_walking_down_finds_the_leaves_of_a_dictionary_trie(catalogue: tuple[list[list[int]], list[bool]]) -> None:
    codes, present = catalogue

    trie = build_trie(as_codes(codes), np.array(present, dtype=bool))

    expected = naive(codes, present)
    assert walk(trie) == expected
    assert list(walk(trie)) == list(expected)  # in lexicographic order
    assert [tuple(c) for c in trie.leaf_codes.tolist()] == list(expected)
    place = {row: leaf for leaf, rows in enumerate(expected.values()) for row in rows}
    assert trie.leaf_of_row.tolist() == [place.get(row, -1) for row in range(len(codes))]


@given(catalogues, st.data())
def test_excluded_leaves_and_dead_nodes_are_those_of_a_dictionary_trie(
    catalogue: tuple[list[list[int]], list[bool]], data: st.DataObject
) -> None:
    codes, present = catalogue
    trie = build_trie(as_codes(codes), np.array(present, dtype=bool))
    out = data.draw(st.lists(st.integers(0, len(codes) - 1), max_size=60)) if codes else []
    expected = naive(codes, present)

    leaves = trie.excluded_leaves(np.array(out, dtype=np.int64))
    dead = trie.dead_nodes(leaves)

    gone = {path for path, rows in expected.items() if set(rows) <= set(out)}
    assert [tuple(c) for c in trie.leaf_codes[leaves].tolist()] == sorted(gone)
    for depth in range(1, LEVELS + 1):
        prefixes = sorted({path[:depth] for path in expected})
        alive = {path[:depth] for path in expected if path not in gone}
        assert [prefixes[node] for node in dead[depth - 1].node] == [p for p in prefixes if p not in alive]


def test_many_requests_are_answered_as_each_alone() -> None:
    trie = build_trie(SMALL)
    asked = [[0], [1, 2], [], [0, 1, 2, 3]]
    leaves = np.array([leaf for own in asked for leaf in own], dtype=np.int64)
    request = np.repeat(np.arange(4), [len(own) for own in asked])

    together = trie.dead_nodes(leaves, request)

    for depth in range(LEVELS):
        dead = together[depth]
        for i, own in enumerate(asked):
            alone = trie.dead_nodes(np.array(own, dtype=np.int64))[depth].node.tolist()
            assert dead.node[dead.request == i].tolist() == alone
        children = [range(*trie.child_start[depth][parent : parent + 2]) for parent in dead.parent]
        assert all(node in own for node, own in zip(dead.node, children, strict=True))
        assert dead.first_sibling.tolist() == [own.start for own in children]


@given(catalogues, st.data())
def test_leaves_of_rows_and_the_nodes_above_them_are_those_of_a_dictionary_trie(
    catalogue: tuple[list[list[int]], list[bool]], data: st.DataObject
) -> None:
    codes, present = catalogue
    trie = build_trie(as_codes(codes), np.array(present, dtype=np.bool_))
    rows = data.draw(st.lists(st.sampled_from(range(len(codes))), max_size=60) if codes else st.just([]))
    paths = list(naive(codes, present).items())

    leaves = trie.leaves_of(np.array(rows, dtype=np.int64))

    assert leaves.tolist() == [leaf for leaf, (_, own) in enumerate(paths) if set(own) & set(rows)]
    for depth, nodes in enumerate(trie.live_nodes(leaves), 1):
        all_nodes = sorted({path[:depth] for path, _ in paths})
        assert nodes.tolist() == [all_nodes.index(p) for p in sorted({paths[leaf][0][:depth] for leaf in leaves})]
