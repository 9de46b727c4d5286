"""Codes in use, collisions and neighbours, on catalogues that can be counted by hand."""

from datetime import UTC, datetime

import pytest

from service.catalog.index import CatalogueIndex
from service.catalog.repository import Codes, StoredItem
from service.catalog.usage import collisions, level_usage, neighbours

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def index(**codes: Codes | None) -> CatalogueIndex:
    """Items by name, in this order; a name that ends in _hidden is not available."""
    stored = [
        StoredItem(name, name, None, (), None, not name.endswith("_hidden"), None, "b", own, NOW, NOW, 1)
        for name, own in codes.items()
    ]
    return CatalogueIndex.of(stored, {name: own for name, own in codes.items() if own is not None}, base_id="b")


def test_a_level_counts_its_codes_and_says_how_even_they_are() -> None:
    levels = level_usage(index(a=(0, 1, 1, 1), b=(0, 2, 1, 1), c=(1, 3, 1, 1), d=(1, 4, 1, 2)))
    assert [level.used for level in levels] == [2, 4, 1, 2]
    assert [level.entropy for level in levels] == pytest.approx([1, 2, 0, 0.8113], abs=1e-4)
    assert [level.perplexity for level in levels[:3]] == pytest.approx([2, 4, 1])
    assert levels[0].counts[:3].tolist() == [2, 2, 0]


def test_hidden_items_and_those_without_codes_use_none() -> None:
    levels = level_usage(index(a=(0, 0, 0, 0), b_hidden=(9, 9, 9, 9), c=None))
    assert [level.used for level in levels] == [1, 1, 1, 1]


def test_an_empty_catalogue_uses_nothing_evenly() -> None:
    assert [(level.used, level.entropy, level.perplexity) for level in level_usage(index())] == [(0, 0.0, 0.0)] * 4
    assert collisions(index().trie, 5, 5).groups == 0
    assert [near.total for near in neighbours(index().trie, (0, 0, 0, 0), 0, 5)] == [0, 0, 0, 0]


def test_collisions_are_named_with_the_largest_group_first() -> None:
    held = index(a=(1, 1, 1, 1), b=(1, 1, 1, 1), c=(2, 2, 2, 2), d=(3, 3, 3, 3), e=(3, 3, 3, 3), f=(3, 3, 3, 3))
    found = collisions(held.trie, largest=1, shown=2)
    assert (found.groups, found.items) == (2, 5)
    [group] = found.largest
    assert (group.codes, group.items) == ((3, 3, 3, 3), 3)
    assert [held.items[row].item_id for row in group.rows] == ["d", "e"]


def test_neighbours_share_exactly_so_many_levels_and_the_item_is_none_of_its_own() -> None:
    held = index(
        other=(1, 0, 0, 0),
        own=(5, 6, 7, 8),
        twin=(5, 6, 7, 8),
        three=(5, 6, 7, 1),
        three_more=(5, 6, 7, 9),
        two=(5, 6, 1, 1),
        one=(5, 0, 7, 8),
        gone_hidden=(5, 6, 7, 7),
    )
    found = neighbours(held.trie, (5, 6, 7, 8), held.row_of["own"], 10)
    named = {near.levels: [held.items[row].item_id for row in near.rows] for near in found}
    assert named == {4: ["twin"], 3: ["three", "three_more"], 2: ["two"], 1: ["one"]}
    assert [near.total for near in found] == [1, 2, 1, 1]


def test_only_so_many_neighbours_are_named_and_all_are_counted() -> None:
    held = index(**{f"i{n}": (1, 1, 1, n) for n in range(20)})
    found = neighbours(held.trie, (1, 1, 1, 5), held.row_of["i5"], 3)
    assert [(near.levels, near.total, len(near.rows)) for near in found] == [
        (4, 0, 0),
        (3, 19, 3),
        (2, 0, 0),
        (1, 0, 0),
    ]


def test_a_hidden_item_has_neighbours_too() -> None:
    held = index(a=(1, 1, 1, 1), own_hidden=(1, 1, 1, 2))
    found = neighbours(held.trie, (1, 1, 1, 2), held.row_of["own_hidden"], 5)
    assert [near.total for near in found] == [0, 1, 0, 0]
