"""Leaves to items, and popularity to items."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.catalog.trie import as_codes, build_trie
from service.generation.engine import Generated
from service.recommend.ranking import rank_leaves, rank_popular

# Leaf 0 holds rows 0, 2 and 4; leaf 1 row 1; leaf 2 rows 3 and 5.
TRIE = build_trie(as_codes([[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]]))
POPULARITY = np.array([0.1, 0.9, 0.5, 0.2, 0.5, 0.2])
NOTHING = np.empty(0, dtype=np.int64)


def generated(leaves: list[int]) -> Generated:
    """Scores -1, -2, .. in the order of `leaves`."""
    return Generated(np.array(leaves, dtype=np.int64), -np.arange(1, len(leaves) + 1, dtype=np.float32))


def rows(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_items_follow_their_leaves_and_within_a_leaf_popularity_then_row() -> None:
    ranked = rank_leaves(generated([2, 0, 1]), TRIE, POPULARITY, NOTHING, 10)

    assert ranked.rows.tolist() == [3, 5, 2, 4, 0, 1]
    assert ranked.scores.tolist() == [-1, -1, -2, -2, -2, -3]


def test_a_list_ends_at_its_limit_even_inside_a_leaf() -> None:
    ranked = rank_leaves(generated([1, 0, 2]), TRIE, POPULARITY, NOTHING, 2)

    assert ranked.rows.tolist() == [1, 2]
    assert ranked.scores.tolist() == [-1, -2]


def test_an_excluded_item_is_left_out_and_those_that_share_its_semantic_id_stay() -> None:
    ranked = rank_leaves(generated([0, 1]), TRIE, POPULARITY, rows([2, 3]), 10)

    assert ranked.rows.tolist() == [4, 0, 1]


def test_no_leaves_give_an_empty_list() -> None:
    ranked = rank_leaves(generated([]), TRIE, POPULARITY, NOTHING, 10)

    assert ranked.rows.tolist() == []
    assert ranked.rows.dtype == np.int64
    assert ranked.scores.dtype == np.float64


def test_the_most_popular_come_first_and_ties_fall_by_row() -> None:
    everything = np.ones(6, dtype=bool)

    ranked = rank_popular(POPULARITY, everything, NOTHING, 4)

    assert ranked.rows.tolist() == [1, 2, 4, 3]
    assert ranked.scores.tolist() == [0.9, 0.5, 0.5, 0.2]
    assert rank_popular(POPULARITY, everything, NOTHING, 2).rows.tolist() == [1, 2]
    assert rank_popular(np.zeros(6), everything, NOTHING, 3).rows.tolist() == [0, 1, 2]


def test_ineligible_and_excluded_items_are_not_popular_and_the_inputs_stay_as_they_were() -> None:
    eligible = np.array([True, False, True, True, True, True])

    ranked = rank_popular(POPULARITY, eligible, rows([2]), 10)

    assert ranked.rows.tolist() == [4, 3, 5, 0]
    assert eligible.tolist() == [True, False, True, True, True, True]


def test_nothing_eligible_gives_an_empty_list() -> None:
    assert rank_popular(POPULARITY, np.zeros(6, dtype=bool), NOTHING, 5).rows.tolist() == []
    assert rank_popular(np.empty(0), np.empty(0, dtype=bool), NOTHING, 5).rows.tolist() == []


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans(), st.booleans()), min_size=1, max_size=30),
    st.integers(1, 35),
)
def test_the_popular_list_is_the_head_of_a_full_sort(items: list[tuple[float, bool, bool]], limit: int) -> None:
    popularity = np.array([weight for weight, _, _ in items])
    eligible = np.array([here for _, here, _ in items])
    excluded = rows([row for row, item in enumerate(items) if item[2]])

    ranked = rank_popular(popularity, eligible, excluded, limit)

    allowed = [row for row, (_, here, out) in enumerate(items) if here and not out]
    assert ranked.rows.tolist() == sorted(allowed, key=lambda row: (-popularity[row], row))[:limit]
    assert ranked.scores.tolist() == popularity[ranked.rows].tolist()
