"""An interaction loses half its weight in every half-life of event time."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from service.catalog.index import EMPTY, CatalogueIndex, IndexedItem
from service.recommend.popularity import Popularity

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
INDEX = CatalogueIndex(tuple(IndexedItem(i, i, (), True, None) for i in ("a", "b", "c")), 1, None)


def by_item(popularity: Popularity) -> list[float]:
    return popularity.by_row(INDEX).tolist()


def test_an_interaction_one_half_life_older_counts_half() -> None:
    popularity = Popularity(30 * DAY)

    assert popularity.add([("a", NOON), ("b", NOON - 30 * DAY)]) == 2

    assert by_item(popularity) == pytest.approx([1, 0.5, 0])


def test_weights_of_one_item_add_up() -> None:
    popularity = Popularity(1 * DAY)

    popularity.add([("a", NOON - 2 * DAY), ("b", NOON), ("a", NOON - DAY), ("a", NOON - DAY)])

    assert by_item(popularity) == pytest.approx([1, 0.8, 0])  # a: 1/4 + 1/2 + 1/2, b: 1


def test_the_order_in_which_events_arrive_does_not_matter() -> None:
    events = [("a", NOON), ("b", NOON - 3 * DAY), ("c", NOON - DAY), ("a", NOON - 2 * DAY), ("b", NOON + DAY)]
    forward, backward, one_by_one = Popularity(2 * DAY), Popularity(2 * DAY), Popularity(2 * DAY)

    forward.add(events)
    backward.add(events[::-1])
    for event in events:
        one_by_one.add([event])

    assert by_item(backward) == pytest.approx(by_item(forward))
    assert by_item(one_by_one) == by_item(forward)


def test_the_same_moment_in_another_time_zone_weighs_the_same() -> None:
    popularity = Popularity(timedelta(hours=1))

    popularity.add([("a", NOON), ("b", NOON.astimezone(timezone(timedelta(hours=9))))])

    assert by_item(popularity) == [1, 1, 0]


def test_decades_of_events_stay_finite_and_the_latest_decide() -> None:
    popularity = Popularity(1 * DAY)  # 40 years are 14,610 half-lives: 2^14610 is no float

    for year in range(1986, 2026):
        popularity.add([("a", datetime(year, 3, 1, tzinfo=UTC))])
    popularity.add([("b", datetime(2025, 2, 28, tzinfo=UTC)), ("c", datetime(2025, 2, 27, tzinfo=UTC))])

    assert by_item(popularity) == pytest.approx([1, 0.5, 0.25])


def test_a_rebase_keeps_the_ratios_of_what_is_already_counted() -> None:
    popularity = Popularity(1 * DAY)

    popularity.add([("a", NOON), ("b", NOON - DAY)])
    popularity.add([("c", NOON + 501 * DAY)])

    weights = popularity.weights()
    assert weights["a"] / weights["b"] == pytest.approx(2)
    assert weights["c"] / weights["a"] == pytest.approx(2.0**501)


def test_an_event_from_long_ago_neither_fails_nor_counts() -> None:
    popularity = Popularity(timedelta(minutes=1))

    popularity.add([("a", NOON), ("b", datetime(1970, 1, 1, tzinfo=UTC))])

    assert by_item(popularity) == pytest.approx([1, 0, 0])


def test_items_nobody_took_weigh_nothing_and_unknown_items_are_no_row() -> None:
    popularity = Popularity(1 * DAY)
    assert by_item(popularity) == [0, 0, 0]
    assert popularity.by_row(EMPTY).tolist() == []

    popularity.add([("gone", NOON), ("b", NOON - DAY)])

    assert by_item(popularity) == [0, 1, 0]
    assert set(popularity.weights()) == {"gone", "b"}


def test_the_weights_given_out_are_a_copy() -> None:
    popularity = Popularity(1 * DAY)
    popularity.add([("a", NOON)])

    given = popularity.weights()
    popularity.add([("b", NOON)])

    assert set(given) == {"a"}


def test_one_interaction_of_the_newest_time_is_what_items_are_measured_by() -> None:
    popularity = Popularity(1 * DAY)
    assert popularity.scaled(INDEX)[1] == 0

    popularity.add([("b", NOON - DAY), ("a", NOON), ("a", NOON), ("a", NOON - DAY)])

    weights, interaction = popularity.scaled(INDEX)
    assert weights / interaction == pytest.approx([2.5, 0.5, 0])


def test_after_counts_were_taken_over_an_interaction_weighs_too_little_rather_than_too_much() -> None:
    first, second = Popularity(1 * DAY), Popularity(1 * DAY)
    first.add([("a", NOON - DAY), ("b", NOON), ("b", NOON)])
    state = first.state()
    assert state is not None
    second.restore(*state)

    assert 0 < second.scaled(INDEX)[1] <= first.scaled(INDEX)[1]
    for one in (first, second):
        one.add([("c", NOON)])
    assert second.scaled(INDEX)[1] == first.scaled(INDEX)[1]
