"""The next trie from the held one is the trie that would be built anew: build_trie is the referee, array by array."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.catalog.trie import LEVELS, Trie, as_codes, build_trie, empty_trie
from service.catalog.trie_changes import changed_trie

OUT = (-1,) * LEVELS
Codes = tuple[int, ...]

# Few codes, so that items share semantic IDs and prefixes; the ends of the range are among them.
semantic_ids = st.tuples(*[st.sampled_from([0, 1, 255])] * LEVELS)
shown = st.one_of(st.just(OUT), semantic_ids)


class Catalogue:
    """Codes by row, OUT for a row that is not searched, and a trie that is only ever changed."""

    def __init__(self, codes: Sequence[Codes] = ()) -> None:
        self.codes = list(codes)
        self.trie = build_trie(as_codes(self.codes))

    def change(self, changes: dict[int, Codes]) -> Trie:
        """Rows take these codes; rows between the old end and the new one are not searched."""
        self.codes += [OUT] * (max(changes, default=-1) + 1 - len(self.codes))
        for row, codes in changes.items():
            self.codes[row] = codes
        rows = np.array(list(changes), dtype=np.int64)
        self.trie = changed_trie(self.trie, rows, as_codes(list(changes.values())), len(self.codes))
        return self.trie

    def holds(self) -> None:
        assert_same(self.trie, build_trie(as_codes(self.codes)))


def arrays(trie: Trie) -> list[NDArray[np.generic]]:
    levels = (trie.code, trie.child_start, trie.node_of_leaf, trie.leaf_count)
    return [*(array for own in levels for array in own), trie.row_start, trie.rows, trie.leaf_of_row]


def assert_same(trie: Trie, expected: Trie) -> None:
    for own, other in zip(arrays(trie), arrays(expected), strict=True):
        assert own.dtype == other.dtype
        assert own.tolist() == other.tolist()


@given(st.lists(shown, max_size=30), st.lists(st.dictionaries(st.integers(0, 35), shown, max_size=12), max_size=5))
def test_any_changes_one_after_the_other_give_the_trie_of_the_changed_catalogue(
    codes: list[Codes], changes: list[dict[int, Codes]]
) -> None:
    catalogue = Catalogue(codes)
    for own in changes:
        catalogue.change(own)
        catalogue.holds()


@given(st.integers(0, 2**32 - 1), st.integers(0, 400), st.integers(1, 60))
def test_catalogues_of_all_codes_and_wide_nodes_are_changed_likewise(seed: int, items: int, changed: int) -> None:
    random = np.random.default_rng(seed)
    spread = random.integers(1, 257, size=LEVELS)
    catalogue = Catalogue([tuple(own) for own in random.integers(0, spread, size=(items, LEVELS)).tolist()])
    rows = random.choice(items + changed, size=changed, replace=False).tolist()
    drawn = [tuple(own) for own in random.integers(0, spread, size=(changed, LEVELS)).tolist()]
    catalogue.change({row: OUT if random.random() < 0.3 else own for row, own in zip(rows, drawn, strict=True)})
    catalogue.holds()


@given(st.lists(semantic_ids, min_size=1, max_size=20), st.data())
def test_items_hidden_and_shown_again_give_the_trie_as_it_was(codes: list[Codes], data: st.DataObject) -> None:
    catalogue = Catalogue(codes)
    before = catalogue.trie
    hidden = data.draw(st.sets(st.integers(0, len(codes) - 1)))
    catalogue.change(dict.fromkeys(hidden, OUT))
    catalogue.holds()
    assert_same(catalogue.change({row: codes[row] for row in hidden}), before)


def test_the_first_item_and_the_last_one() -> None:
    catalogue = Catalogue()
    assert_same(catalogue.trie, empty_trie())
    catalogue.change({2: (7, 0, 255, 1)})  # rows 0 and 1 came with it and have no codes yet
    assert catalogue.trie.leaf_of_row.tolist() == [-1, -1, 0]
    catalogue.holds()
    catalogue.change({2: OUT})
    assert catalogue.trie.leaves == 0
    catalogue.holds()


def test_a_leaf_goes_with_its_last_row_only() -> None:
    catalogue = Catalogue([(1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 5)])
    catalogue.change({0: OUT})
    assert catalogue.trie.leaf_codes.tolist() == [[1, 2, 3, 4], [1, 2, 3, 5]]
    assert catalogue.trie.rows_of(0).tolist() == [1]
    catalogue.change({1: OUT})
    assert catalogue.trie.leaf_codes.tolist() == [[1, 2, 3, 5]]
    catalogue.holds()


def test_two_items_may_change_places() -> None:
    catalogue = Catalogue([(1, 2, 3, 4), (9, 9, 9, 9)])
    catalogue.change({0: (9, 9, 9, 9), 1: (1, 2, 3, 4)})
    assert catalogue.trie.leaf_of_row.tolist() == [1, 0]
    catalogue.holds()


def test_a_change_that_changes_nothing_gives_the_held_trie() -> None:
    catalogue = Catalogue([(1, 2, 3, 4), OUT])
    held = catalogue.trie
    assert catalogue.change({}) is held
    assert catalogue.change({1: OUT, 0: (1, 2, 3, 4)}) is held
    catalogue.change({2: OUT})  # one row more, not searched
    assert catalogue.trie.leaf_of_row.tolist() == [0, -1, -1]
    catalogue.holds()


@given(st.lists(semantic_ids, min_size=1, max_size=20), st.dictionaries(st.integers(0, 25), shown, min_size=1))
def test_who_holds_the_trie_before_the_change_sees_none_of_it(codes: list[Codes], changes: dict[int, Codes]) -> None:
    catalogue = Catalogue(codes)
    held = catalogue.trie
    for array in arrays(held):
        array.flags.writeable = False
    catalogue.change(changes)
    assert_same(held, build_trie(as_codes(codes)))
