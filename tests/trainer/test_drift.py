"""What is said of a window's stream beside the one before it."""

from datetime import UTC, datetime

import numpy as np
import pytest

from service.catalog.index import CatalogueIndex
from service.catalog.repository import StoredItem
from service.kit.db import Database
from service.settings import Settings
from service.windows import service as windows
from service.windows.states import SealedBecause
from tests import worlds
from tests.conftest import SetClock
from trainer.drift import Drift, by_category, by_first_code, compare, jensen_shannon, measure

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_equal_distributions_are_0_apart_and_those_that_share_nothing_1() -> None:
    assert jensen_shannon({"a": 2, "b": 2}, {"a": 5, "b": 5}) == 0
    assert jensen_shannon({"a": 3}, {"b": 1, "c": 1}) == 1


def test_the_distance_is_the_root_of_the_divergence_in_bits() -> None:
    # (1, 0) against (1/2, 1/2): half of log2(4/3), and half of log2(2/3) / 2 + log2(2) / 2
    assert jensen_shannon({"a": 1}, {"a": 1, "b": 1}) == pytest.approx(0.557923, abs=1e-6)
    assert jensen_shannon({"a": 1, "b": 1}, {"a": 1}) == pytest.approx(0.557923, abs=1e-6)


def test_nothing_cannot_be_compared() -> None:
    assert jensen_shannon({}, {"a": 1}) is None
    assert jensen_shannon({"a": 1}, {}) is None


def item(item_id: str, *categories: str) -> StoredItem:
    return StoredItem(
        item_id=item_id,
        title=item_id,
        description=None,
        categories=categories,
        brand=None,
        available=True,
        deleted_at=None,
        base_id=None,
        codes=None,
        created_at=NOON,
        updated_at=NOON,
        revision=1,
    )


@pytest.fixture
def index() -> CatalogueIndex:
    items = [item("a", "lamps"), item("b", "lamps", "red"), item("c"), item("d", "chairs")]
    return CatalogueIndex.of(items, {"a": (7, 0, 0, 0), "b": (7, 1, 0, 0), "c": (9, 0, 0, 0)}, base_id="b-1")


def test_an_item_counts_a_part_in_each_of_its_categories(index: CatalogueIndex) -> None:
    assert by_category(index, {"a": 3, "b": 2, "c": 1, "unknown": 9}) == {"lamps": 4.0, "red": 1.0, None: 1.0}


def test_items_count_by_their_first_code(index: CatalogueIndex) -> None:
    assert by_first_code(index, {"a": 3, "b": 2, "c": 1, "d": 4, "unknown": 9}) == {7: 5, 9: 1}


def test_new_users_and_items_are_shares_of_those_in_the_window(index: CatalogueIndex) -> None:
    popularity = np.array([1.0, 0.0, 0.5, 0.0])  # b and d are new
    counts = {"a": 3, "b": 2, "unknown": 9}
    found = compare(index, counts, {"a": 1, "c": 1}, popularity, ["ann", "bob", "eve"], ["bob"])
    assert (found.new_user_share, found.new_item_share) == (pytest.approx(2 / 3), 0.5)
    assert found.as_json()["new_user_share"] == 0.6667
    assert {type(value) for value in found.as_json().values()} == {float}  # which JSON can carry


def test_the_first_window_has_none_to_be_compared_with(index: CatalogueIndex) -> None:
    assert compare(index, {"a": 1}, {}, np.zeros(4), ["ann"], []) == Drift(1.0, 1.0, None, None)
    assert compare(index, {}, {}, np.zeros(4), [], []) == Drift(None, None, None, None)


def test_it_is_measured_from_the_store(
    database: Database, clock: SetClock, settings: Settings, index: CatalogueIndex
) -> None:
    def send(name: str, *taken: tuple[str, str], event_type: str = "view") -> int:
        events = [worlds.event(f"{name}{n}", user, one, NOON, event_type) for n, (user, one) in enumerate(taken)]
        worlds.send(database, clock, events)
        return windows.horizon(database)

    send("before", ("ann", "a"), ("ann", "d"))
    windows.seal(database, clock, settings, SealedBecause.MANUAL)
    clock.advance(minutes=1)
    first = windows.horizon(database)
    send("first", ("ann", "a"), ("bob", "a"))
    windows.seal(database, clock, settings, SealedBecause.MANUAL)
    after = windows.horizon(database)
    send("seen", ("eve", "c"), event_type="impression")
    through = send("second", ("ann", "a"), ("joe", "c"), ("joe", "unknown"), ("bob", "a"))

    found = measure(database, settings, index, after, through, np.array([1.0, 0.0, 0.0, 0.5]))
    assert found.as_json() == {
        "new_user_share": 0.3333,  # joe of ann, bob and joe
        "new_item_share": 0.5,  # c of a and c
        "category_drift": pytest.approx(jensen_shannon({"lamps": 2}, {"lamps": 2, None: 1}), abs=1e-4),
        "code_drift": pytest.approx(jensen_shannon({7: 2}, {7: 2, 9: 1}), abs=1e-4),
    }
    assert measure(database, settings, index, first + 1, through, np.ones(4)).category_drift is None
