"""This process's catalogue is the store's: after own writes at once, after others' within an interval."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from service.adapters import service as adapters
from service.catalog import repository, service
from service.catalog.follower import CatalogueFollower
from service.catalog.index import EMPTY
from service.kit.db import Database
from tests import worlds
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock


@pytest.fixture
def shelf(tmp_path: Path, database: Database, clock: SetClock) -> Shelf:
    return Shelf(tmp_path, database, clock)


@pytest.fixture
def follower(database: Database) -> CatalogueFollower:
    return CatalogueFollower(database, timedelta(hours=1))


@pytest.fixture
def running(database: Database) -> Iterator[CatalogueFollower]:
    made = CatalogueFollower(database, timedelta(seconds=0.02))
    made.start()
    yield made
    made.stop()


def put(shelf: Shelf, *names: str, **more: object) -> None:
    worlds.put(shelf.database, shelf.clock, [{"item_id": name, "title": name, **more} for name in names])


def encode(shelf: Shelf, base_id: str, **codes: tuple[int, int, int, int]) -> None:
    with shelf.database.write() as connection:
        revision = repository.next_revision(connection)
        repository.set_codes(connection, base_id, codes, revision=revision)


def servable(follower: CatalogueFollower) -> list[str]:
    """Items that are in the trie."""
    index = follower.index
    return [index.items[row].item_id for row in np.flatnonzero(index.trie.leaf_of_row >= 0)]


def test_before_the_first_look_the_catalogue_is_empty(follower: CatalogueFollower) -> None:
    assert follower.index is EMPTY


def test_an_empty_store_stays_the_empty_catalogue(follower: CatalogueFollower) -> None:
    assert follower.refresh() is EMPTY


def test_a_refresh_shows_what_is_stored_now(shelf: Shelf, follower: CatalogueFollower) -> None:
    put(shelf, "b", "a")
    assert [item.item_id for item in follower.refresh().items] == ["a", "b"]
    put(shelf, "c")
    put(shelf, "a", available=False)
    index = follower.refresh()
    assert [(item.item_id, item.available) for item in index.items] == [("a", False), ("b", True), ("c", True)]
    with shelf.database.read() as connection:
        assert index.revision == repository.current_revision(connection)


def test_without_a_change_the_snapshot_stays_the_same_object(shelf: Shelf, follower: CatalogueFollower) -> None:
    put(shelf, "a")
    assert follower.refresh() is follower.refresh()


def test_a_snapshot_that_a_request_holds_never_changes(shelf: Shelf, follower: CatalogueFollower) -> None:
    put(shelf, "a")
    held = follower.refresh()
    put(shelf, "b")
    follower.refresh()
    assert [item.item_id for item in held.items] == ["a"]


def test_items_with_codes_of_the_active_base_are_in_the_trie(shelf: Shelf, follower: CatalogueFollower) -> None:
    put(shelf, "a", "b")
    base = shelf.active_base()
    encode(shelf, base, a=(1, 2, 3, 4))
    follower.refresh()
    assert follower.index.base_id == base
    assert servable(follower) == ["a"]


def test_a_hidden_or_deleted_item_leaves_the_trie_and_keeps_its_codes(
    shelf: Shelf, follower: CatalogueFollower
) -> None:
    put(shelf, "a", "b", "c")
    encode(shelf, shelf.active_base(), a=(1, 0, 0, 0), b=(2, 0, 0, 0), c=(3, 0, 0, 0))
    follower.refresh()
    assert servable(follower) == ["a", "b", "c"]
    put(shelf, "a", available=False)
    service.delete_item(shelf.database, shelf.clock, "b")
    follower.refresh()
    assert servable(follower) == ["c"]
    assert follower.index.codes[:, 0].tolist() == [1, 2, 3]
    put(shelf, "a", "b")
    follower.refresh()
    assert servable(follower) == ["a", "b", "c"]


def test_another_base_drops_the_codes_of_the_one_before(shelf: Shelf, follower: CatalogueFollower) -> None:
    put(shelf, "a", "b")
    encode(shelf, shelf.active_base(0.5), a=(1, 0, 0, 0), b=(2, 0, 0, 0))
    follower.refresh()
    second = shelf.active_base(0.6)
    follower.refresh()
    assert (follower.index.base_id, servable(follower)) == (second, [])
    encode(shelf, second, b=(7, 0, 0, 0))
    follower.refresh()
    assert servable(follower) == ["b"]
    assert follower.index.codes[1].tolist() == [7, 0, 0, 0]


def test_going_back_to_the_base_alone_changes_nothing_in_the_catalogue(
    shelf: Shelf, follower: CatalogueFollower
) -> None:
    put(shelf, "a")
    base = shelf.active_base()
    encode(shelf, base, a=(1, 0, 0, 0))
    held = follower.refresh()
    adapters.activate_base(shelf.database, shelf.clock, base, actor="test")
    assert follower.refresh() is held


@pytest.fixture
def patching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots are made from the one before, as in a large catalogue."""
    monkeypatch.setattr("service.catalog.index.FEW", 0)


@pytest.mark.usefixtures("patching")
def test_an_item_added_hidden_shown_again_or_recoded_keeps_all_rows(shelf: Shelf, follower: CatalogueFollower) -> None:
    put(shelf, "b", "c", categories=["tea"])
    base = shelf.active_base()
    encode(shelf, base, b=(2, 0, 0, 0), c=(3, 0, 0, 0))
    follower.refresh()
    put(shelf, "a", categories=["tea"])
    encode(shelf, base, a=(1, 0, 0, 0))
    assert follower.refresh().row_of == {"b": 0, "c": 1, "a": 2}
    assert servable(follower) == ["b", "c", "a"]
    assert follower.index.rows_by_category["tea"].tolist() == [0, 1, 2]
    put(shelf, "b", available=False)
    follower.refresh()
    assert servable(follower) == ["c", "a"]
    assert follower.index.rows_by_category["tea"].tolist() == [1, 2]
    put(shelf, "b")
    encode(shelf, base, c=(2, 0, 0, 0))
    trie = follower.refresh().trie
    assert servable(follower) == ["b", "c", "a"]
    assert [trie.rows_of(leaf).tolist() for leaf in range(trie.leaves)] == [[2], [0, 1]]


@pytest.mark.usefixtures("patching")
def test_a_reader_always_holds_a_whole_snapshot_while_items_come_and_go(
    shelf: Shelf, running: CatalogueFollower
) -> None:
    base = shelf.active_base()
    put(shelf, "i0")
    wrong: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            index = running.index
            sizes = {len(index.items), len(index.codes), len(index.available), len(index.trie.leaf_of_row)}
            ids = [item.item_id for item in index.items]
            searched = [item.available and item.codes is not None for item in index.items]
            if len(sizes) > 1 or index.rows(ids).tolist() != list(range(len(ids))):
                wrong.append(f"sizes {sizes}")
            if (index.trie.leaf_of_row >= 0).tolist() != searched:
                wrong.append(f"searched {searched}")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for number in range(1, 15):
            put(shelf, f"i{number}")
            encode(shelf, base, **{f"i{number}": (number % 3, 0, 0, 0)})
            put(shelf, f"i{number - 1}", available=number % 2 == 0)
            running.notify()
        worlds.eventually(lambda: len(running.index.items) == 15)
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert wrong == []


def test_many_items_are_read_page_by_page(
    shelf: Shelf, follower: CatalogueFollower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.catalog.follower.PAGE", 3)
    for number in range(4):
        put(shelf, f"{number}a", f"{number}b")
    assert len(follower.refresh().items) == 8


def test_what_others_write_is_there_within_an_interval(shelf: Shelf, running: CatalogueFollower) -> None:
    put(shelf, "a")
    worlds.eventually(lambda: len(running.index.items) == 1)


def test_a_notification_brings_the_change_at_once(shelf: Shelf, follower: CatalogueFollower) -> None:
    put(shelf, "a")
    follower.start()  # with an interval of an hour
    worlds.eventually(lambda: len(follower.index.items) == 1)
    put(shelf, "b")
    follower.notify()
    worlds.eventually(lambda: len(follower.index.items) == 2)
    follower.stop()
