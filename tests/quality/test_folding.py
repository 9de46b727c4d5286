"""Recommendations are counted once, a bucket at a time, when all that may be credited to them has had time to come."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from service.errors import LeaseLost
from service.kit.db import Database
from service.kit.lease_keeper import held
from service.quality import folding, repository
from service.quality.figures import Counts, Sums
from service.quality.repository import Bucket, Model
from service.quality.service import POPULAR
from service.quality.tables import quality_buckets
from service.settings import Settings
from service.users.service import erase_user
from tests import worlds
from tests.conftest import SetClock
from tests.quality.shown import NOON, Shop, minutes

ADAPTER = Model("a-1", "personalised")


def counted(shop: Shop) -> dict[Model, Counts]:
    return {bucket.by: bucket.counts for bucket in buckets(shop)}


def buckets(shop: Shop) -> list[Bucket]:
    with shop.database.read() as connection:
        return repository.buckets(connection, shop.settings.quality_horizon or timedelta(0))


def test_each_model_gets_its_own_row(shop: Shop) -> None:
    first = shop.show("ann", ["a", "b"], model="a-1")
    shop.show("bob", ["a", "c"], model="a-1")
    shop.show("eve", ["a"], base="b-1")
    shop.show(None, ["p"])
    shop.take("ann", "b", NOON + minutes(1), first)
    shop.take("eve", "a", NOON + minutes(2))

    assert shop.fold() == 1
    found = counted(shop)
    assert found.keys() == {ADAPTER, Model("b-1", "base"), POPULAR}
    assert found[ADAPTER].sums == Sums(shown=2, hits=1, shown_squares=2, shown_hits=1, hit_squares=1)
    assert found[ADAPTER].gain == pytest.approx(0.63093, abs=1e-5)
    assert found[Model("b-1", "base")].sums.hits == 1
    assert (found[POPULAR].sums.shown, found[POPULAR].anonymous) == (1, 1)


def test_what_is_not_over_yet_waits(shop: Shop) -> None:
    shop.show("ann", ["a"], model="a-1")
    assert shop.fold(NOON + minutes(19)) == 0  # the bucket ends at 10, its last horizon at 20
    shop.take("ann", "a", NOON + minutes(9))
    assert shop.fold(NOON + minutes(20)) == 1
    assert counted(shop)[ADAPTER].sums.hits == 1


def test_events_may_be_late(shop: Shop) -> None:
    shop.settings = shop.settings.model_copy(update={"quality_lateness": timedelta(minutes=30)})
    shop.show("ann", ["a"], model="a-1")
    assert shop.fold(NOON + minutes(49)) == 0
    shop.take("ann", "a", NOON + minutes(9))  # sent when the horizon has long been over
    assert shop.fold(NOON + minutes(50)) == 1
    assert counted(shop)[ADAPTER].sums.hits == 1


def test_an_event_is_credited_to_the_latest_recommendation_also_across_buckets(shop: Shop) -> None:
    shop.show("ann", ["a", "b"], NOON, model="a-1")
    shop.show("ann", ["a"], NOON + minutes(11), model="a-2")
    shop.take("ann", "a", NOON + minutes(9.9))
    shop.take("ann", "b", NOON + minutes(9.95))
    shop.take("ann", "a", NOON + minutes(12))  # within nobody's horizon but the second's
    assert shop.fold() == 2
    found = counted(shop)
    assert (found[ADAPTER].gain, found[Model("a-2", "personalised")].gain) == (pytest.approx(1.63093, abs=1e-5), 1.0)


def test_an_event_that_names_another_recommendation_is_not_credited_here(shop: Shop) -> None:
    other = shop.show(None, ["a"], NOON - minutes(30))
    shop.show("ann", ["a"], NOON, model="a-1")
    shop.show("ann", ["a"], NOON - minutes(5), model="a-0")
    shop.take("ann", "a", NOON + minutes(1), "00000000-0000-7000-8000-000000000000")
    shop.take("ann", "a", NOON - minutes(21), other)
    shop.fold()
    assert {by.model: counts.sums.hits for by, counts in counted(shop).items()} == {"popular": 1, "a-1": 1, "a-0": 0}


def test_types_that_do_not_count_are_left_out(shop: Shop) -> None:
    shop.show("ann", ["a"], model="a-1")
    shop.take("ann", "a", NOON + minutes(1), event_type="impression")
    shop.fold()
    assert counted(shop)[ADAPTER].sums.hits == 0


def test_repetition_looks_at_what_the_user_was_shown_before(shop: Shop) -> None:
    shop.show("ann", ["a", "b"], NOON - timedelta(days=3), model="a-0")
    shop.show("ann", ["b", "c"], NOON, model="a-1")
    shop.show("ann", ["b", "c"], NOON + minutes(1), model="a-1")
    shop.show("bob", ["b"], NOON + minutes(1), model="a-1")
    shop.fold()
    assert (counted(shop)[ADAPTER].repeated, counted(shop)[ADAPTER].repeatable) == (3, 4)


def test_time_without_recommendations_is_passed_over(shop: Shop) -> None:
    shop.show("ann", ["a"], NOON - timedelta(days=400), model="a-1")
    shop.show("ann", ["a"], NOON, model="a-1")
    assert shop.fold() == 2
    assert [bucket.start for bucket in buckets(shop)] == [NOON - timedelta(days=400), NOON]


def test_nothing_is_counted_twice(shop: Shop) -> None:
    shop.show("ann", ["a"], model="a-1")
    assert [shop.fold(), shop.fold()] == [1, 0]
    shop.show("ann", ["a"], NOON + minutes(10), model="a-1")
    assert shop.fold() == 1
    assert [bucket.counts.sums.shown for bucket in buckets(shop)] == [1, 1]


def test_buckets_of_another_length_go_on_where_the_others_ended(shop: Shop) -> None:
    for after in (0, 15, 25, 65):
        shop.show("ann", ["a"], NOON + minutes(after), model="a-1")
    assert shop.fold(NOON + minutes(20)) == 1
    shop.settings = shop.settings.model_copy(update={"quality_bucket": timedelta(hours=1)})
    shop.fold()
    assert [(b.start, b.counts.sums.shown) for b in buckets(shop)] == [
        (NOON, 1),
        (NOON + minutes(10), 2),
        (NOON + minutes(60), 1),
    ]


def test_pages_do_not_matter(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        shop.show(f"u{number % 2}", ["a", f"i{number}"], NOON + minutes(number), model="a-1")
    shop.take("u0", "a", NOON + minutes(4.5))
    shop.take("u1", "a", NOON + minutes(5))
    monkeypatch.setattr(folding, "PAGE", 2)
    shop.fold()
    counts = counted(shop)[ADAPTER]
    assert (counts.sums.shown, counts.sums.hits, counts.users, counts.distinct_items) == (7, 2, 2, 8)
    assert (counts.repeated, counts.repeatable) == (5, 10)


def test_a_user_shown_more_than_is_looked_at_credits_nothing_beyond(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "AHEAD", 3)
    monkeypatch.setattr(folding, "PAGE", 2)
    for number in range(6):
        shop.show("robot", ["a"], NOON + minutes(number), model="a-1")
    shop.take("robot", "a", NOON + minutes(9))
    shop.fold()
    assert counted(shop)[ADAPTER].sums.hits == 1  # the last one's, whose page sees all that follows


def test_another_process_that_took_over_keeps_the_first_from_writing(shop: Shop, clock: SetClock) -> None:
    shop.show("ann", ["a"], model="a-1")
    with held(shop.database, folding.QUALITY_LEASE, "one", shop.settings.lease_duration) as lease:
        pass
    assert lease is not None
    assert shop.fold() == 1
    shop.show("ann", ["a"], NOON + minutes(10), model="a-1")
    clock.advance(days=7)
    with pytest.raises(LeaseLost):
        folding.fold(shop.database, clock, shop.settings, lease)
    assert len(buckets(shop)) == 1


def test_without_a_horizon_nothing_is_counted(shop: Shop) -> None:
    shop.settings = shop.settings.model_copy(update={"quality_horizon": None})
    shop.show("ann", ["a"], model="a-1")
    assert shop.fold() == 0


def test_old_buckets_are_forgotten(shop: Shop, database: Database, clock: SetClock, settings: Settings) -> None:
    shop.show("ann", ["a"], NOON - timedelta(days=500), model="a-1")
    shop.show("ann", ["a"], NOON, model="a-1")
    shop.fold()
    assert folding.forget(database, clock, settings) == 1
    assert [bucket.start for bucket in buckets(shop)] == [NOON]
    shop.fold()
    assert len(buckets(shop)) == 1
    assert folding.forget(database, clock, settings.model_copy(update={"quality_retention": None})) == 0


def test_long_lists_of_many_items_are_counted(shop: Shop) -> None:
    lists = [[f"i{n}-{place}" for place in range(100)] for n in range(400)]  # more than SQLite takes parameters
    for number, items in enumerate(lists):
        shop.show(f"u{number}", items, NOON, model="a-1")
    shop.take("u399", "i399-99", NOON + minutes(1))
    shop.fold()
    counts = counted(shop)[ADAPTER]
    assert (counts.sums.shown, counts.sums.hits, counts.distinct_items) == (400, 1, 40_000)
    assert counts.gain == pytest.approx(0.150190, abs=1e-6)


def test_an_erased_user_leaves_and_what_was_counted_stays(shop: Shop, database: Database, clock: SetClock) -> None:
    shop.show("ann", ["a"], NOON, model="a-1")
    shop.show("bob", ["a"], NOON, model="a-1")
    shop.fold(NOON + minutes(20))
    shop.show("ann", ["a"], NOON + minutes(10), model="a-1")
    shop.show("bob", ["a"], NOON + minutes(10), model="a-1")
    erase_user(database, "ann", clock=clock, actor="cli")
    shop.fold()
    assert [(b.counts.sums.shown, b.counts.users) for b in buckets(shop)] == [(2, 2), (1, 1)]
    with database.read() as connection:
        rows = [str(row) for row in connection.execute(sa.select(quality_buckets))]
    assert not any("ann" in row or "bob" in row for row in rows)


def test_novelty_is_in_bits_of_popularity(shop: Shop, database: Database, clock: SetClock) -> None:
    worlds.put(database, clock, worlds.items(range(4)))
    from service.events import repository as events
    from service.events.repository import PopularityKey

    with database.write() as connection:
        events.begin_popularity(connection, PopularityKey(1.0, ()))
        events.advance_popularity(connection, 0, 1, {"i00": 0.0, "i01": 1.0, "i02": 0.0})
    shop.show("ann", ["i00", "i01"], model="a-1")
    shop.fold()
    counts = counted(shop)[ADAPTER]
    assert (counts.novelty, counts.novelty_items, counts.catalogue) == (3.0, 2, 4)


def test_what_has_piled_up_is_counted_for_some_time_and_then_others_get_a_turn(shop: Shop, clock: SetClock) -> None:
    for number in range(60):
        shop.show("ann", ["a"], NOON + minutes(10 * number), model="a-1")
    clock.now = NOON + timedelta(days=1)
    passed = [0.0]

    def slowly() -> float:
        """Ten seconds for each bucket."""
        passed[0] += 10.0
        return passed[0]

    with held(shop.database, folding.QUALITY_LEASE, "test", shop.settings.lease_duration) as lease:
        assert lease is not None
        assert folding.fold(shop.database, clock, shop.settings, lease, slowly) == 3
        assert folding.fold(shop.database, clock, shop.settings, lease, lambda: 0.0) == 57
