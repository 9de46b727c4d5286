"""An event is credited to one recommendation at most: the one that it names, else the latest that held its item."""

from datetime import UTC, datetime, timedelta

import pytest

from service.quality.attribution import Shown, Taken, credits

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def shown(name: str, minutes: float, *items: str, user: str | None = "ann") -> Shown:
    return Shown(name, user, at(minutes), items)


def test_the_latest_recommendation_that_held_the_item_is_credited() -> None:
    lists = [shown("r1", 0, "a", "b"), shown("r2", 5, "a"), shown("r3", 6, "c"), shown("r4", 20, "a")]
    assert credits(lists, [Taken("ann", "a", at(10))], DAY) == {"r2": {"a"}}


def test_the_one_that_an_event_names_comes_first() -> None:
    lists = [shown("r1", 0, "a"), shown("r2", 5, "a")]
    assert credits(lists, [Taken("ann", "a", at(10), "r1")], DAY) == {"r1": {"a"}}


@pytest.mark.parametrize("named", ["gone", "without-it", "of-bob"])
def test_a_name_that_cannot_be_credited_leaves_it_to_time(named: str) -> None:
    lists = [shown("r1", 0, "a"), shown("without-it", 1, "b"), shown("of-bob", 2, "a", user="bob")]
    assert credits(lists, [Taken("ann", "a", at(10), named)], DAY) == {"r1": {"a"}}


def test_a_recommendation_for_nobody_is_credited_only_by_name() -> None:
    lists = [shown("r1", 0, "a", user=None)]
    assert credits(lists, [Taken("ann", "a", at(1))], DAY) == {}
    assert credits(lists, [Taken("ann", "a", at(1), "r1")], DAY) == {"r1": {"a"}}


@pytest.mark.parametrize(("minutes", "counts"), [(-0.1, False), (0, True), (10, True), (10.1, False)])
def test_the_horizon_is_inclusive_and_begins_with_the_recommendation(minutes: float, counts: bool) -> None:
    found = credits([shown("r1", 0, "a")], [Taken("ann", "a", at(minutes))], timedelta(minutes=10))
    assert found == ({"r1": {"a"}} if counts else {})


def test_an_event_that_names_a_recommendation_may_come_from_a_clock_that_is_behind() -> None:
    horizon = timedelta(minutes=10)
    assert credits([shown("r1", 0, "a")], [Taken("ann", "a", at(-1), "r1")], horizon) == {"r1": {"a"}}
    assert credits([shown("r1", 0, "a")], [Taken("ann", "a", at(10.1), "r1")], horizon) == {}


def test_several_events_on_several_items_are_credited_item_by_item() -> None:
    events = [Taken("ann", "a", at(1)), Taken("ann", "a", at(2)), Taken("ann", "b", at(3)), Taken("bob", "b", at(3))]
    assert credits([shown("r1", 0, "a", "b", "c")], events, DAY) == {"r1": {"a", "b"}}


def test_where_later_recommendations_are_not_known_only_names_count() -> None:
    lists, known = [shown("r1", 0, "a")], {"ann": at(5)}
    events = [Taken("ann", "a", at(6)), Taken("ann", "a", at(7), "r1")]
    assert credits(lists, events[:1], DAY, known) == {}
    assert credits(lists, events, DAY, known) == {"r1": {"a"}}
