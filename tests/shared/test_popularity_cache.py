"""A new replica goes on from what another has counted, and counts everything itself when that is of no use."""

import time
from datetime import timedelta

import pytest
import sqlalchemy as sa
from redis import Redis

from service.catalog.index import CatalogueIndex, IndexedItem
from service.events.tables import events
from service.kit.db import Database
from service.kit.redis_link import RedisLink
from service.recommend.fallback import PopularityFollower
from service.recommend.popularity_cache import LONGEST_CHAIN, PIECE, Counts, SharedCounts
from tests import worlds
from tests.conftest import SetClock

INDEX = CatalogueIndex(tuple(IndexedItem(i, i, (), True, None) for i in ("a", "b", "c")), 1, None)
HALF_LIFE = timedelta(days=30)
AT_ONCE = timedelta(milliseconds=1)


def shared(link: RedisLink, half_life: timedelta = HALF_LIFE) -> SharedCounts:
    return SharedCounts(link, half_life, {"impression"}, every=AT_ONCE)


def follower(database: Database, link: RedisLink, half_life: timedelta = HALF_LIFE) -> PopularityFollower:
    """Of a new replica."""
    made = PopularityFollower(
        database, half_life, timedelta(seconds=1), {"impression"}, lambda: INDEX, shared(link, half_life)
    )
    time.sleep(0.005)  # it is somebody's turn again
    made.refresh()
    return made


def by_item(made: PopularityFollower) -> list[float]:
    return [round(weight, 6) for weight in made.by_row(INDEX).tolist()]


def take(database: Database, clock: SetClock, name: str, *items: str) -> None:
    found = [worlds.event(f"{name}{i}", f"u{name}{i}", item, worlds.START) for i, item in enumerate(items)]
    worlds.send(database, clock, found)


def test_a_new_replica_goes_on_where_the_first_has_come_to(
    database: Database, clock: SetClock, link: RedisLink
) -> None:
    take(database, clock, "x", "a", "a", "a", "a", "b")
    assert by_item(follower(database, link)) == [1, 0.25, 0]
    with database.write() as connection:  # the count goes on from four of `a`, so these are not read again
        connection.execute(events.delete().where(events.c.item_id == "a"))
    take(database, clock, "y", "b", "c")
    second = follower(database, link)
    assert by_item(second) == [1, 0.5, 0.25]
    take(database, clock, "z", "c", "c", "c")
    second.refresh()
    assert by_item(second) == [1, 0.5, 1], "and neither twice nor not at all"
    assert by_item(follower(database, link)) == [1, 0.5, 1]


def test_counts_of_other_settings_of_a_longer_store_or_of_yesterday_are_not_gone_on_from(
    database: Database, clock: SetClock, link: RedisLink
) -> None:
    take(database, clock, "x", "a", "b")
    long_ago = time.time() - LONGEST_CHAIN.total_seconds() - 1
    wrong = Counts(through_seq=2, from_nothing_at=time.time(), offset=0.0, weights={"c": 9.0})
    shared(link, half_life=timedelta(days=1)).share(wrong)
    assert shared(link).load(newest_seq=2) is None
    shared(link).share(Counts(2, long_ago, 0.0, wrong.weights))
    assert shared(link).load(newest_seq=2) is None
    shared(link).share(Counts(3, wrong.from_nothing_at, 0.0, wrong.weights))
    assert shared(link).load(newest_seq=3) is not None
    assert shared(link).load(newest_seq=2) is None, "such as of a store that was put back to an earlier day"
    assert by_item(follower(database, link)) == [1, 1, 0]


def test_many_items_travel_in_pieces_and_a_lost_piece_is_no_start(link: RedisLink, client_of_redis: Redis) -> None:
    weights = {f"item-{n}": n / 7 for n in range(2 * PIECE + 5)}
    made = shared(link)
    made.share(Counts(10, time.time(), 123.5, weights))
    found = made.load(newest_seq=10)
    assert found is not None
    assert (found.through_seq, found.offset, dict(found.weights)) == (10, 123.5, weights)
    pieces = client_of_redis.keys(link.key("popularity", "*", "*", "1"))
    assert len(pieces) == 1
    client_of_redis.delete(*pieces)
    assert made.load(newest_seq=10) is None


def test_counts_that_are_not_ahead_are_not_shared_and_neither_are_those_of_one_who_is_early(link: RedisLink) -> None:
    began = time.time() - 60
    seldom = SharedCounts(link, HALF_LIFE, {"impression"}, every=timedelta(minutes=1))
    seldom.share(Counts(10, began, 0.0, {"a": 1.0}))
    seldom.share(Counts(20, began, 0.0, {"a": 2.0}))
    found = seldom.load(100)
    assert found is not None
    assert found.through_seq == 10
    link.run(lambda client: client.delete(link.key("popularity", seldom._name, "turn")))
    seldom.share(Counts(9, began, 0.0, {"a": 3.0}))
    found = seldom.load(100)
    assert found is not None
    assert found.through_seq == 10


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_without_redis_everything_is_counted(database: Database, clock: SetClock) -> None:
    take(database, clock, "x", "a", "b", "b")
    link = RedisLink("redis://127.0.0.1:1")
    link.connect()
    assert by_item(follower(database, link)) == [0.5, 1, 0]
    with database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(events)) == 3
    link.stop()
