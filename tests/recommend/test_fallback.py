"""Popularity by row goes with the snapshot that a request holds."""

from datetime import timedelta

import pytest

from service.catalog.index import EMPTY, CatalogueIndex, IndexedItem
from service.kit.db import Database
from service.recommend.fallback import PopularityFollower
from tests import worlds
from tests.conftest import SetClock


def item(name: str, available: bool = True) -> dict[str, IndexedItem]:
    return {name: IndexedItem(name, name, (), available, None)}


@pytest.fixture
def first() -> CatalogueIndex:
    return CatalogueIndex(tuple((item("a") | item("b")).values()), 1, None)


class Following:
    """A popularity follower over the test's store and whatever catalogue the test holds."""

    def __init__(self, database: Database) -> None:
        self.index = EMPTY
        day = timedelta(days=1)
        self.follower = PopularityFollower(database, 365 * day, day, (), lambda: self.index)

    def weights(self, index: CatalogueIndex) -> list[float]:
        return [round(weight, 2) for weight in self.follower.by_row(index).tolist()]


@pytest.fixture
def following(database: Database, clock: SetClock) -> Following:
    taken = ["a", "b", "a", "new", "new", "new", "new"]
    events = [worlds.event(f"e{i}", f"u{i}", name, worlds.START) for i, name in enumerate(taken)]
    worlds.send(database, clock, events)
    made = Following(database)
    made.follower.refresh()
    return made


def test_a_snapshot_that_does_not_come_from_the_counted_one_is_counted_at_once(
    following: Following, first: CatalogueIndex
) -> None:
    assert following.weights(EMPTY) == []
    assert following.weights(first) == [1, 0.5]


def test_an_item_added_after_the_count_weighs_nothing_until_the_next_one(
    following: Following, first: CatalogueIndex
) -> None:
    following.index = first
    following.follower.refresh()
    following.index = first.changed(item("new"), revision=2)
    assert following.weights(following.index) == [1, 0.5, 0]
    following.follower.refresh()
    assert following.weights(following.index) == [0.5, 0.25, 1]


def test_a_request_that_holds_an_older_snapshot_gets_as_many_rows(following: Following, first: CatalogueIndex) -> None:
    following.index = first.changed(item("new"), revision=2)
    following.follower.refresh()
    assert following.weights(first) == [0.5, 0.25]


def test_hiding_an_item_changes_no_weight(following: Following, first: CatalogueIndex) -> None:
    following.index = first
    following.follower.refresh()
    assert following.weights(first.changed(item("a", available=False), revision=2)) == [1, 0.5]


def test_what_was_counted_is_known_however_often_an_item_changes(following: Following, first: CatalogueIndex) -> None:
    counted = following.follower.basis(following.follower.by_row(first))
    assert counted == (7, 2)
    index = first
    for revision in range(2, 22):
        index = index.changed(item("a", available=bool(revision % 2)), revision=revision)
        assert following.follower.basis(following.follower.by_row(index)) == counted
