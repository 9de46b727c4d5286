"""The comparison may be looked at after every bucket: seldom wrong when nothing differs, sure to see a real loss."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from service.quality.figures import Sums
from service.quality.sequential import Control, Rules, Sides, judge, lower, upper

USERS = 50
"""New users in a bucket."""


def stream(random: np.random.Generator, buckets: int, rate: float, hours: float = 1.0) -> Iterator[Sums]:
    """What has been counted after each bucket. Users come one to five times, and some like everything.

    A user's own rate is drawn from a Beta distribution of mean `rate`, so recommendations of one user resemble each
    other. hours: a factor on all rates, as of a worse time of day.
    """
    shown = random.integers(1, 6, (buckets, USERS))
    own = random.beta(rate * 4, (1 - rate) * 4, (buckets, USERS)) * hours
    hits = random.binomial(shown, own)
    total = Sums()
    for n, h in zip(shown.tolist(), hits.tolist(), strict=True):
        total += Sums.of_users(zip(n, h, strict=True))
        yield total


def last(sums: Iterator[Sums]) -> Sums:
    *_, total = sums
    return total


def falls_at(incumbent: Sums, challenger: Iterator[Sums], rules: Rules) -> int | None:
    """After which bucket the challenger is said to have fallen, looked at after each; None: never."""
    for number, seen in enumerate(challenger, 1):
        if judge(Sides(seen, incumbent), rules).fell:
            return number
    return None


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5])
def test_of_versions_that_are_alike_few_are_ever_said_to_have_fallen(rate: float) -> None:
    random, rules = np.random.default_rng(7), Rules(alpha=0.05, margin=0.0, minimum=500, uncontrolled=True)
    alarms = [
        falls_at(last(stream(random, 40, rate)), stream(random, 120, rate), rules) is not None for _ in range(300)
    ]
    assert np.mean(alarms) <= 0.05


def test_a_test_for_one_look_would_be_wrong_far_more_often_than_it_says() -> None:
    random, alarms = np.random.default_rng(7), 0
    for _ in range(300):
        old = last(stream(random, 40, 0.1))
        for new in stream(random, 120, 0.1):
            error = (new.spread / new.shown**2 + old.spread / old.shown**2) ** 0.5
            if new.shown >= 500 and (new.hits / new.shown - old.hits / old.shown) / error < -1.645:
                alarms += 1
                break
    assert alarms / 300 > 0.1


def test_a_version_that_lost_half_of_its_hits_is_found() -> None:
    random, rules = np.random.default_rng(7), Rules(alpha=0.05, margin=0.1, minimum=500, uncontrolled=True)
    found = [falls_at(last(stream(random, 80, 0.1)), stream(random, 120, 0.05), rules) for _ in range(50)]
    assert all(found)


def test_a_version_without_any_hit_is_found_soon() -> None:
    random, rules = np.random.default_rng(7), Rules(alpha=0.05, margin=0.1, minimum=500, uncontrolled=True)
    nothing = (Sums.of_users([(3, 0)] * USERS * count) for count in range(1, 20))
    found = falls_at(last(stream(random, 40, 0.1)), nothing, rules)
    assert found is not None
    assert found * USERS * 3 <= 1_000


def test_a_loss_within_the_margin_is_left_alone() -> None:
    random, rules = np.random.default_rng(7), Rules(alpha=0.05, margin=0.3, minimum=500, uncontrolled=True)
    found = [falls_at(last(stream(random, 80, 0.2)), stream(random, 120, 0.16), rules) for _ in range(50)]
    assert found == [None] * 50


def night(random: np.random.Generator) -> Sides:
    """The challenger served while everybody took half as much of everything, popular lists included."""
    return Sides(
        challenger=last(stream(random, 120, 0.2, 0.5)),
        incumbent=last(stream(random, 120, 0.2)),
        popular_challenger=last(stream(random, 120, 0.1, 0.5)),
        popular_incumbent=last(stream(random, 120, 0.1)),
    )


def test_a_worse_time_is_not_taken_for_a_worse_version() -> None:
    random, rules = np.random.default_rng(7), Rules(alpha=0.05, margin=0.1, minimum=500, uncontrolled=True)
    for _ in range(20):
        sides = night(random)
        decision = judge(sides, rules)
        assert (decision.control, decision.fell) == (Control.POPULARITY, False)
        assert judge(Sides(sides.challenger, sides.incumbent), rules).fell  # what it would be without


def test_a_worse_version_is_found_beside_popular_lists() -> None:
    random, rules = np.random.default_rng(7), Rules(alpha=0.05, margin=0.1, minimum=500)
    popular = last(stream(random, 400, 0.1))
    sides = Sides(last(stream(random, 400, 0.05)), last(stream(random, 400, 0.2)), False, popular, popular)
    assert judge(sides, rules).fell


def sums(shown: int, hits: int) -> Sums:
    return Sums.of_users([(1, 1)] * hits + [(1, 0)] * (shown - hits))


def test_too_few_recommendations_decide_nothing() -> None:
    decision = judge(Sides(sums(499, 0), sums(10_000, 5_000)), Rules(0.05, 0.1, 500, True))
    assert (decision.fell, decision.at_most) == (False, None)
    assert "499" in decision.why


def test_without_any_control_nothing_is_decided_unless_it_is_asked_for() -> None:
    sides = Sides(sums(1_000, 0), sums(10_000, 5_000))
    assert not judge(sides, Rules(0.05, 0.1, 500)).fell
    assert judge(sides, Rules(0.05, 0.1, 500, uncontrolled=True)).fell
    assert judge(Sides(sides.challenger, sides.incumbent, concurrent=True), Rules(0.05, 0.1, 500)).fell


def test_a_previous_version_without_hits_cannot_be_fallen_below() -> None:
    assert not judge(Sides(sums(1_000, 0), sums(1_000, 0)), Rules(0.05, 0.1, 500, True)).fell


def test_bounds_close_in_as_recommendations_come() -> None:
    few, many = sums(1_000, 100), sums(100_000, 10_000)
    assert 0 <= lower(few, 0.05, 500) < lower(many, 0.05, 500) < 0.1 < upper(many, 0.05, 500) < upper(few, 0.05, 500)
    assert upper(many, 0.05, 500) - 0.1 < 0.006


def needed(rate: float, loss: float, *, beside_popular: bool) -> int:
    """The fewest recommendations of each side (a grid of 2 %) with which a loss of exactly this share is seen."""
    rules, n = Rules(0.05, 0.1, 1_000, uncontrolled=True), 1_000
    while True:
        popular = sums_of(n, rate / 2) if beside_popular else Sums()
        if judge(Sides(sums_of(n, rate * (1 - loss)), sums_of(n, rate), False, popular, popular), rules).fell:
            return n
        n = int(n * 1.02) + 1


def sums_of(shown: int, rate: float) -> Sums:
    hits = round(shown * rate)
    return Sums(shown, hits, shown, hits, hits)


def test_the_page_says_how_many_it_takes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "quality.md").read_text()
    rows = re.findall(r"^\| (0\.\d+) \| (\d+ %|all) \| ([\d,]+) \| ([\d,]+) \|$", page, re.MULTILINE)
    assert len(rows) == 9
    for rate, loss, alone, beside in rows:
        lost = 1.0 if loss == "all" else int(loss.removesuffix(" %")) / 100
        for said, popular in ((alone, False), (beside, True)):
            found = needed(float(rate), lost, beside_popular=popular)
            assert int(said.replace(",", "")) == pytest.approx(found, rel=0.03), (rate, loss, found)
