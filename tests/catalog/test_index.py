"""The catalogue in memory."""

import numpy as np

from service.catalog.index import EMPTY, CatalogueIndex, IndexedItem

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
