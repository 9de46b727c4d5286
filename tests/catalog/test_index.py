"""The catalogue in memory."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.catalog.index import EMPTY, CatalogueIndex, IndexedItem
from service.catalog.repository import StoredItem

Written = dict[str, IndexedItem]

INDEX = CatalogueIndex(
    items=(
        IndexedItem("alien", "Alien", ("Horror", "Sci-Fi"), True, (1, 2, 3, 4)),
        IndexedItem("blade", "Blade Runner", ("Sci-Fi", "sci-fi"), False, (0, 0, 0, 0)),
        IndexedItem("clue", "Clue", (), True, None),
        IndexedItem("dune", "Dune", ("SCI-FI",), True, (1, 2, 3, 5)),
    ),
    revision=7,
    base_id="b-1",
)


def test_items_are_found_by_id_and_unknown_ids_are_skipped() -> None:
    assert INDEX.row_of["dune"] == 3
    assert INDEX.rows(["dune", "nobody", "alien", "dune"]).tolist() == [3, 0, 3]
    assert INDEX.rows([]).dtype == np.int64


def test_codes_are_minus_one_where_an_item_has_none_and_all_zeros_are_codes() -> None:
    assert INDEX.codes.tolist() == [[1, 2, 3, 4], [0, 0, 0, 0], [-1, -1, -1, -1], [1, 2, 3, 5]]
    assert INDEX.codes.dtype == np.int16
    assert INDEX.with_codes(np.array([3, 2, 1])).tolist() == [3, 1]
    assert INDEX.with_codes(np.empty(0, dtype=np.int64)).tolist() == []


def test_only_available_items_with_codes_are_in_the_trie() -> None:
    assert INDEX.trie.leaf_of_row.tolist() == [0, -1, -1, 1]
    assert INDEX.available.tolist() == [True, False, True, True]


def test_an_unavailable_item_keeps_its_codes_for_a_prompt() -> None:
    assert INDEX.codes[INDEX.with_codes(INDEX.rows(["blade"]))].tolist() == [[0, 0, 0, 0]]


def test_categories_are_found_in_any_case_and_hold_a_row_once() -> None:
    assert {c: rows.tolist() for c, rows in INDEX.rows_by_category.items()} == {"horror": [0], "sci-fi": [0, 1, 3]}


def test_an_empty_catalogue_answers_every_question() -> None:
    assert EMPTY.codes.shape == (0, 4)
    assert EMPTY.available.dtype == np.bool_
    assert EMPTY.trie.leaves == 0
    assert EMPTY.rows(["alien"]).tolist() == []
    assert dict(EMPTY.rows_by_category) == {}


items = st.builds(
    IndexedItem,
    item_id=st.sampled_from("abcdefgh"),
    title=st.sampled_from(["one", "two"]),
    categories=st.lists(st.sampled_from(["Tea", "tea", "Pots"]), max_size=2).map(tuple),
    available=st.booleans(),
    codes=st.none() | st.tuples(*[st.integers(0, 1)] * 4),
    brand=st.sampled_from([None, "Acme", "ACME", "Other"]),
)
writes = st.lists(items, max_size=6).map(lambda some: {item.item_id: item for item in some})


def everything(index: CatalogueIndex) -> list[object]:
    """All that a reader can ask of a snapshot."""
    trie = index.trie
    levels = (trie.code, trie.child_start, trie.node_of_leaf, trie.leaf_count)
    arrays = [*(own for level in levels for own in level), trie.row_start, trie.rows, trie.leaf_of_row]
    arrays += [index.codes, index.coded, index.available, index.rows("hgfedcba")]
    names = [{name: r.tolist() for name, r in held.items()} for held in (index.rows_by_category, index.rows_by_brand)]
    return [list(index.items), dict(index.row_of), *names, *((own.dtype, own.tolist()) for own in arrays)]


@given(writes, st.lists(writes, max_size=4), st.sampled_from([0, 2, 50]))
def test_a_snapshot_made_from_the_one_before_is_the_one_made_from_all_items(
    first: Written, later: list[Written], few: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.catalog.index.FEW", few)  # 0: arrays are always patched; 50: never, for so few items
        index = CatalogueIndex(tuple(first.values()), 1, "b-1").load()
        now = dict(first)
        for revision, written in enumerate(later, 2):
            held, before = index, everything(index)
            index = index.changed(written, revision=revision).load()
            now |= written  # in place, or at the end
            assert everything(index) == everything(CatalogueIndex(tuple(now.values()), revision, "b-1"))
            assert (index.revision, index.base_id) == (revision, "b-1")
            assert everything(held) == before
            assert index.numbered_like(held)


def test_two_successors_of_one_snapshot_number_their_own_items() -> None:
    new = {name: IndexedItem(name, name, (), True, None) for name in ("e", "f")}
    one = INDEX.changed({"e": new["e"]}, revision=8)
    other = INDEX.changed({"f": new["f"]}, revision=8)
    assert (dict(one.row_of)["e"], "f" in one.row_of) == (4, False)
    assert (dict(other.row_of)["f"], "e" in other.row_of) == (4, False)
    assert "e" not in INDEX.row_of
    assert not other.numbered_like(one)


def test_rows_are_in_order_of_creation_then_of_id() -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    stored = [
        StoredItem(name, name, None, ("Tea",), None, True, None, None, None, at, at, 1)
        for name, at in (("b", noon), ("a", noon + timedelta(seconds=1)), ("c", noon - timedelta(days=1)), ("a2", noon))
    ]
    assert [item.item_id for item in CatalogueIndex.of(stored, {}).items] == ["c", "a2", "b", "a"]
