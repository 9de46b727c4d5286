"""Which events of the store become whose stream."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.catalog import repository as catalog_rows
from service.catalog.index import CatalogueIndex
from service.kit.db import Database
from service.recommend.popularity import Popularity
from service.recommend.votes import count_through
from service.settings import Settings
from service.windows.repository import measure
from tests import worlds
from tests.conftest import SetClock
from trainer.streams import WindowStreams, load_streams

T = worlds.START


class Store:
    """Events by hand: `take("u", "a b c")` is user u taking a, then b, then c, a minute apart."""

    def __init__(self, database: Database, clock: SetClock, settings: Settings) -> None:
        self.database, self.clock, self.settings = database, clock, settings
        self._sent = 0

    def add_items(self, names: str, *, coded: bool = True) -> None:
        worlds.put(self.database, self.clock, [{"item_id": name, "title": f"thing {name}"} for name in names.split()])
        if coded:
            codes = {name: (ord(name), 0, 0, 0) for name in names.split()}
            with self.database.write() as connection:
                revision = catalog_rows.next_revision(connection)
                catalog_rows.set_codes(connection, "b-1", codes, revision=revision)

    def take(self, user: str, items: str, *, at: datetime = T, event_type: str = "view") -> None:
        events = []
        for place, item in enumerate(items.split()):
            self._sent += 1
            events.append(worlds.event(f"e{self._sent}", user, item, at + timedelta(minutes=place), event_type))
        worlds.send(self.database, self.clock, events)

    @property
    def through(self) -> int:
        with self.database.read() as connection:
            return measure(connection, 0, None, None)[1]

    def index(self) -> CatalogueIndex:
        """The catalogue as base b-1 sees it."""
        with self.database.read() as connection:
            stored = catalog_rows.changed_since(connection, 0)
        codes = {item.item_id: item.codes for item in stored if item.codes is not None}
        return CatalogueIndex.of(stored, codes, base_id="b-1")

    def load(self, after: int = 0, through: int | None = None, **changes: Any) -> WindowStreams:
        settings = self.settings.model_copy(update=changes)
        return load_streams(self.database, settings, self.index(), after, self.through if through is None else through)

    def plain(self, found: WindowStreams) -> dict[str, tuple[str, str]]:
        """user -> (earlier items, items in the window)."""
        items = self.index().items
        return {
            s.user_id: tuple(" ".join(items[row].item_id for row in part) for part in (s.earlier, s.window))
            for s in found.streams
        }


@pytest.fixture
def store(database: Database, clock: SetClock, tmp_path: Path) -> Store:
    made = Store(database, clock, Settings(home=tmp_path, min_events_per_user=3))
    made.add_items("a b c d e f g")
    return made


def test_an_empty_window_has_no_streams(store: Store) -> None:
    found = store.load()
    assert (found.streams, found.events, found.unknown, found.newest) == ((), 0, 0, None)


def test_a_window_is_cut_by_sequence_and_what_came_before_is_history(store: Store) -> None:
    store.take("u", "a b")
    after = store.through
    store.take("u", "c d e", at=T + timedelta(days=1))
    through = store.through
    store.take("u", "f g", at=T + timedelta(days=2))

    found = store.load(after, through)

    assert store.plain(found) == {"u": ("a b", "c d e")}
    assert (found.events, found.newest) == (3, T + timedelta(days=1, minutes=2))


def test_each_user_has_a_stream_in_order_of_id_and_only_the_own_past(store: Store) -> None:
    store.take("z", "a b c")
    after = store.through
    store.take("z", "d e f", at=T + timedelta(days=1))
    store.take("m", "g f e", at=T + timedelta(days=1))

    found = store.load(after)

    assert store.plain(found) == {"m": ("", "g f e"), "z": ("a b c", "d e f")}
    assert list(store.plain(found)) == ["m", "z"]


def test_events_are_in_order_of_occurred_at_not_of_arrival(store: Store) -> None:
    store.take("u", "c d", at=T + timedelta(hours=2))
    store.take("u", "a b", at=T)  # late
    store.take("u", "e", at=T + timedelta(hours=1))

    assert store.plain(store.load()) == {"u": ("", "a b e c d")}


def test_a_late_event_belongs_to_the_window_in_which_it_arrived(store: Store) -> None:
    store.take("u", "b c", at=T + timedelta(hours=1))
    after = store.through
    store.take("u", "a", at=T)
    store.take("u", "d e", at=T + timedelta(hours=2))

    assert store.plain(store.load(after)) == {"u": ("b c", "a d e")}


def test_users_below_the_minimum_are_left_out_and_their_events_still_counted(store: Store) -> None:
    store.take("few", "a b")
    store.take("enough", "a b c")

    found = store.load()

    assert store.plain(found) == {"enough": ("", "a b c")}
    assert found.events == 5


def test_the_minimum_counts_known_items_of_the_window_only(store: Store) -> None:
    store.take("u", "a b c")
    after = store.through
    store.take("u", "d e unheard-of", at=T + timedelta(days=1))

    found = store.load(after)

    assert store.plain(found) == {}
    assert (found.events, found.unknown) == (3, 1)


def test_unknown_items_are_counted_and_left_out_until_they_arrive(store: Store) -> None:
    store.take("u", "a x b x c")
    found = store.load()
    assert (found.events, found.unknown, store.plain(found)) == (5, 2, {"u": ("", "a b c")})

    store.add_items("x", coded=False)
    assert store.load().unknown == 2  # no semantic ID yet: the model has no name for it

    store.add_items("x")
    found = store.load()
    assert (found.events, found.unknown, store.plain(found)) == (5, 0, {"u": ("", "a x b x c")})


def test_unknown_items_of_the_past_are_no_history(store: Store) -> None:
    store.take("u", "a x b")
    after = store.through
    store.take("u", "c d e", at=T + timedelta(days=1))

    assert store.plain(store.load(after)) == {"u": ("a b", "c d e")}


def test_a_deleted_item_still_teaches(store: Store) -> None:
    store.take("u", "a b c")
    with store.database.write() as connection:
        revision = catalog_rows.next_revision(connection)
        catalog_rows.delete(connection, "b", now=store.clock(), revision=revision)

    assert store.plain(store.load()) == {"u": ("", "a b c")}


def test_ignored_types_are_no_interactions_neither_now_nor_before(store: Store) -> None:
    store.take("u", "a b")
    store.take("u", "g g", event_type="impression")
    after = store.through
    store.take("u", "c d e", at=T + timedelta(days=1))
    store.take("u", "f f f", at=T + timedelta(days=2), event_type="impression")
    store.take("looker", "a b c", event_type="impression")

    found = store.load(after)
    assert store.plain(found) == {"u": ("a b", "c d e")}
    assert (found.events, found.newest) == (3, T + timedelta(days=1, minutes=2))

    found = store.load(after, ignored_event_types=frozenset())
    assert store.plain(found) == {"looker": ("", "a b c"), "u": ("a g b g", "c d e f f f")}


def test_the_past_reaches_back_as_far_as_items_count_as_seen(store: Store) -> None:
    store.take("u", "a b c d")
    after = store.through
    store.take("u", "e f g", at=T + timedelta(days=1))

    assert store.plain(store.load(after, seen_items=2)) == {"u": ("c d", "e f g")}


def test_popularity_counts_what_is_an_interaction_up_to_the_end_and_a_user_once_for_an_item(store: Store) -> None:
    store.take("u", "a a b")
    store.take("v", "a a")
    store.take("u", "c", event_type="impression")
    store.take("u", "x")
    through = store.through
    store.take("u", "d d d d")
    day = timedelta(days=30_000)  # nothing fades

    counted = {}
    for end, ignored in ((through, frozenset({"impression"})), (store.through, frozenset[str]())):
        popularity = Popularity(day)
        with store.database.read() as connection:
            assert count_through(connection, popularity, end, ignored) == (1, end)
        counted[end] = {item: round(weight, 3) for item, weight in popularity.weights().items()}
    assert counted[through] == {"a": 2, "b": 1, "x": 1}
    assert counted[store.through] == {"a": 2, "b": 1, "x": 1, "c": 1, "d": 1}
    popularity = Popularity(day)
    with store.database.read() as connection:
        count_through(connection, popularity, through, frozenset({"impression"}), without={("v", "a"), ("u", "x")})
    assert {item: round(weight, 3) for item, weight in popularity.weights().items()} == {"a": 1, "b": 1}


def test_who_does_not_act_like_a_person_is_reported_and_learnt_from_like_any_other(store: Store) -> None:
    store.take("person", "a b c d e f g")
    store.take("timer", "a b c " * 20)  # once a minute, to the second

    found = store.load()

    assert (found.events, found.suspects, found.suspect_events) == (67, 1, 60)
    assert list(store.plain(found)) == ["person", "timer"]
