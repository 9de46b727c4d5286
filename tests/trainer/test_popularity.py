"""Popularity that is kept between updates is what counting everything anew would give."""

import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.catalog.index import CatalogueIndex, IndexedItem
from service.events import repository
from service.events.repository import PopularityKey
from service.kit.db import Database
from service.recommend.popularity import Popularity
from service.recommend.ranking import Float64
from service.settings import Settings
from service.users.service import erase_user
from tests import worlds
from tests.conftest import SetClock
from trainer.popularity import KeptPopularity, added

INDEX = CatalogueIndex(
    tuple(IndexedItem(f"i{n}", f"thing {n}", (), True, None) for n in range(12)), revision=1, base_id=None
)
BLOCK = 16  # so that counts begin, stop and go on within one and across several


class Shop:
    """Random interactions, some of them only seen, and what a plain count over all of them says."""

    def __init__(self, database: Database, clock: SetClock, settings: Settings) -> None:
        self.database, self.clock, self.settings = database, clock, settings
        self._random = random.Random(5)
        self._sent: list[dict[str, Any]] = []

    def trade(self, events: int, users: str = "u") -> int:
        """So many events more, of five users; the sequence number of the last."""
        new = []
        for _ in range(events):
            number = len(self._sent) + len(new)
            at = worlds.START + timedelta(hours=number, minutes=-self._random.randrange(600))
            kind = self._random.choice(["view", "view", "buy", "impression"])
            item = f"i{min(self._random.randrange(14), self._random.randrange(14))}"  # i12 and i13 are in no catalogue
            new.append(worlds.event(f"e{number}", f"{users}{self._random.randrange(5)}", item, at, kind))
        for event in new:  # one by one, so that the sequence is the order of this list
            worlds.send(self.database, self.clock, [event])
        self._sent += new
        return len(self._sent)

    def keeper(self, **changes: Any) -> KeptPopularity:
        """As a new process has it."""
        return KeptPopularity(self.database, self.settings.model_copy(update=changes))

    def counted(self, through: int, *, erased: int = 0, **changes: Any) -> Float64:
        """erased: so many of the first events were, after they had been counted."""
        settings = self.settings.model_copy(update=changes)
        popularity = Popularity(settings.popularity_half_life)
        counting = {}
        for place, event in enumerate(self._sent[:through]):
            if event["event_type"] not in settings.ignored_event_types:
                vote = (place // BLOCK, place < erased, event["user_id"], event["item_id"])
                counting.setdefault(vote, (event["item_id"], datetime.fromisoformat(event["occurred_at"])))
        popularity.add(counting.values())
        return popularity.by_row(INDEX)


@pytest.fixture
def shop(database: Database, clock: SetClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setattr("service.recommend.votes.BLOCK", BLOCK)
    return Shop(database, clock, Settings(home=tmp_path, popularity_half_life=timedelta(days=2)))


def same(found: Float64, wanted: Float64) -> bool:
    return bool(np.allclose(found, wanted, rtol=1e-9, atol=0) and found.shape == wanted.shape)


def test_before_anything_happened_nothing_is_popular(shop: Shop) -> None:
    assert shop.keeper().by_row(INDEX, 0, keep=True).tolist() == [0.0] * 12


@pytest.mark.parametrize("keep", [True, False])
def test_each_window_sees_what_counting_everything_before_it_would_say(shop: Shop, keep: bool) -> None:
    keeper = shop.keeper()
    for events in (30, 1, 0, 25):
        through = shop.trade(events) if events else 31
        assert same(keeper.by_row(INDEX, through, keep=keep), shop.counted(through))


def test_a_count_stops_at_the_end_of_a_window_and_goes_on_from_there(shop: Shop) -> None:
    shop.trade(40)
    for through in (10, 11, 40):
        assert same(shop.keeper().by_row(INDEX, through, keep=True), shop.counted(through))


def test_many_pages_are_counted_like_one(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.popularity.EVENTS_PER_QUERY", 7)
    through = shop.trade(40)
    assert same(shop.keeper().by_row(INDEX, through, keep=True), shop.counted(through))
    assert same(shop.keeper().by_row(INDEX, through, keep=True), shop.counted(through))


def test_a_new_process_counts_only_what_is_new(shop: Shop) -> None:
    first = shop.trade(30)
    shop.keeper().by_row(INDEX, first, keep=True)
    for user in range(5):
        erase_user(shop.database, f"u{user}", clock=shop.clock, actor="tests")  # what was counted cannot be read again
    through = shop.trade(10, users="v")

    assert same(shop.keeper().by_row(INDEX, through, keep=True), shop.counted(through, erased=first))


def test_a_rehearsal_uses_what_is_kept_and_writes_nothing(shop: Shop) -> None:
    first = shop.trade(20)
    shop.keeper().by_row(INDEX, first, keep=True)
    through = shop.trade(20)
    before = worlds.row_counts(shop.database), stored(shop)

    assert same(shop.keeper().by_row(INDEX, through, keep=False), shop.counted(through))
    assert same(shop.keeper().by_row(INDEX, 5, keep=False), shop.counted(5))
    assert (worlds.row_counts(shop.database), stored(shop)) == before


def test_after_a_rehearsal_the_same_process_still_keeps_what_it_counts(shop: Shop) -> None:
    keeper = shop.keeper()
    through = shop.trade(20)
    keeper.by_row(INDEX, through, keep=False)
    assert same(keeper.by_row(INDEX, through, keep=True), shop.counted(through))
    assert stored(shop)[0] == through
    assert same(shop.keeper().by_row(INDEX, through, keep=True), shop.counted(through))


@pytest.mark.parametrize(
    "changes",
    [{"popularity_half_life": timedelta(hours=5)}, {"ignored_event_types": frozenset({"buy"})}],
    ids=["half-life", "ignored types"],
)
def test_other_settings_are_counted_anew(shop: Shop, changes: dict[str, Any]) -> None:
    through = shop.trade(30)
    shop.keeper().by_row(INDEX, through, keep=True)
    assert same(shop.keeper(**changes).by_row(INDEX, through, keep=True), shop.counted(through, **changes))
    assert same(shop.keeper(**changes).by_row(INDEX, through, keep=True), shop.counted(through, **changes))
    assert same(shop.keeper().by_row(INDEX, through, keep=True), shop.counted(through))


def test_an_updater_that_was_overtaken_neither_counts_wrongly_nor_spoils_what_is_kept(shop: Shop) -> None:
    first = shop.trade(20)
    slow, quick = shop.keeper(), shop.keeper()
    slow.by_row(INDEX, first, keep=True)
    second = shop.trade(20)
    quick.by_row(INDEX, second, keep=True)

    assert same(slow.by_row(INDEX, 30, keep=True), shop.counted(30))
    assert same(slow.by_row(INDEX, second, keep=True), shop.counted(second))
    assert same(shop.keeper().by_row(INDEX, second, keep=True), shop.counted(second))


def test_decades_between_interactions_neither_overflow_nor_divide_by_zero() -> None:
    day = 86_400.0
    old, new = worlds.START - timedelta(days=20_000), worlds.START
    weights = added({}, [("i0", old), ("i1", new), ("i1", new), ("i2", old), ("i2", new)], day)

    assert weights["i1"] - weights["i0"] == pytest.approx(20_001)
    assert weights["i2"] == pytest.approx(weights["i1"] - 1)
    again = added(weights, [("i0", old)], day)
    assert again == {"i0": pytest.approx(weights["i0"] + 1)}
    assert added(weights, [], day) == {}


def test_what_was_taken_ages_ago_was_taken(shop: Shop) -> None:
    """With nothing left of its weight it would be an item that nobody had ever taken."""
    ages = [("e0", "i0", worlds.START - timedelta(days=3_000)), ("e1", "i1", worlds.START)]
    for event_id, item, at in ages:
        worlds.send(shop.database, shop.clock, [worlds.event(event_id, "u", item, at, "buy")])
    found = shop.keeper().by_row(INDEX, 2, keep=False)  # 1,500 half-lives
    assert (found > 0).tolist() == [True, True] + [False] * 10
    assert found[0] < 1e-200


def stored(shop: Shop) -> tuple[int | None, Sequence[tuple[str, float]]]:
    key = PopularityKey(
        shop.settings.popularity_half_life.total_seconds(), tuple(sorted(shop.settings.ignored_event_types))
    )
    with shop.database.read() as connection:
        return repository.popularity_counted_through(connection, key), sorted(
            repository.stored_popularity(connection).items()
        )
