"""What is counted of recommendations, and how buckets add up."""

import math

import pytest

from service.quality.figures import Counts, Sums, Surprises, Tally, gain
from service.quality.sketch import distinct, sketch, union


def test_gain_is_discounted_by_position() -> None:
    assert gain(["a", "b", "c"], {"a"}) == 1.0
    assert gain(["a", "b", "c"], {"c"}) == 0.5
    assert gain(["a", "b", "c"], {"a", "c", "elsewhere"}) == 1.5
    assert gain(["a", "b", "c"], set()) == 0.0


SURPRISES = Surprises({"a": 2.0, "b": 1.0, "c": 0.0, "d": 0.0})  # of 8: 1, 2, 3 and 3 bits


def tally(*rows: tuple[str | None, str, str, str | None]) -> Counts:
    made = Tally()
    for user, items, taken, previous in rows:
        made.add(user, list(items), set(taken), None if previous is None else set(previous), SURPRISES)
    return made.counts(catalogue=10)


def test_a_tally_counts_what_was_shown_and_taken() -> None:
    counts = tally(
        ("ann", "abc", "b", None), ("ann", "abd", "", "abc"), ("bob", "xyz", "xz", None), (None, "a", "", None)
    )
    assert counts.sums == Sums(shown=4, hits=2, shown_squares=4 + 1 + 1, shown_hits=2 + 1, hit_squares=1 + 1)
    assert counts.gain == pytest.approx(1 / math.log2(3) + 1 + 0.5)
    assert (counts.users, counts.anonymous) == (2, 1)
    assert (counts.items, counts.distinct_items, counts.catalogue) == (10, 7, 10)
    assert (counts.novelty, counts.novelty_items) == ((1 + 2 + 3) + (1 + 2 + 3) + (3 + 3 + 3) + 1, 10)
    assert (counts.repeated, counts.repeatable) == (2, 3)


def test_buckets_add_up_and_items_that_are_in_both_count_once() -> None:
    one, other = tally(("ann", "abc", "a", None)), tally(("ann", "bcd", "", None))
    both = Counts.total([one, other])
    assert both.sums == Sums(2, 1, 2, 1, 1)
    assert (both.users, both.items, both.distinct_items, both.catalogue) == (2, 6, 4, 10)
    assert Counts.total([one]) == one
    assert Counts.total([]) == Counts()


@pytest.mark.parametrize("count", [0, 1, 100, 3_000, 100_000])
def test_a_sketch_knows_about_how_many_items_it_has_seen(count: int) -> None:
    names = [f"item-{n}" for n in range(count)]
    halves = union([sketch(names[: count * 2 // 3]), sketch(names[count // 3 :])])
    assert halves == sketch(names)
    assert distinct(halves) == pytest.approx(count, rel=0.07)


def test_surprise_is_the_share_in_bits() -> None:
    weights = {"a": 0.0, "b": 1.0, "c": 0.0}  # one, two and one interaction
    assert Surprises(weights).of("ab") == [2.0, 1.0]
    assert Surprises(weights).of(["never seen"]) == [2.0]
    assert Surprises({}).of("ab") == []


def test_the_interval_is_wilsons_when_everybody_comes_once() -> None:
    low, high = Sums.of_users([(1, 1)] * 10 + [(1, 0)] * 90).interval() or (0, 0)
    assert (low, high) == (pytest.approx(0.05523, abs=2e-4), pytest.approx(0.17437, abs=2e-4))


def test_users_who_come_often_make_it_wider() -> None:
    once = Sums.of_users([(1, 1)] * 100 + [(1, 0)] * 900).interval() or (0, 0)
    often = Sums.of_users([(10, 10)] * 10 + [(10, 0)] * 90).interval() or (0, 0)
    assert often[1] - often[0] > 3 * (once[1] - once[0]) * 0.95


def test_nothing_but_misses_is_not_certainty() -> None:
    low, high = Sums.of_users([(1, 0)] * 50).interval() or (1, 1)
    assert low == 0
    assert 0.05 < high < 0.08
    assert Sums().interval() is None
    assert Sums.of_users([(1, 0)] * 50).spread > 0
