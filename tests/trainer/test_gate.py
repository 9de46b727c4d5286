"""The gate's rule on numbers that can be checked by hand."""

import numpy as np
import pytest

from trainer.gate import Refusal, Verdict, all_finite, compare, judge, paired_bootstrap


def judged(candidate: list[float], incumbent: list[float], **changes: object) -> Verdict:
    options: dict[str, object] = {
        "weights_finite": True,
        "min_users": 4,
        "tolerance": 0.1,
        "confidence": 0.95,
        "seed": 0,
    }
    return judge(candidate, incumbent, **(options | changes))  # type: ignore[arg-type]


def test_a_better_candidate_passes() -> None:
    verdict = judged([0.5, 0.6, 0.5, 0.6], [0.4, 0.5, 0.4, 0.5])
    assert verdict.passed
    assert verdict.comparison is not None
    assert verdict.comparison.difference == pytest.approx(0.1)
    assert (verdict.comparison.low, verdict.comparison.high) == (pytest.approx(0.1), pytest.approx(0.1))
    assert verdict.comparison.relative_loss == pytest.approx(-0.1 / 0.45)


def test_an_identical_candidate_passes() -> None:
    verdict = judged([0.4, 0.0, 1.0, 0.5], [0.4, 0.0, 1.0, 0.5])
    assert verdict.passed
    assert verdict.comparison is not None
    assert verdict.comparison.identical
    assert (verdict.comparison.low, verdict.comparison.high, verdict.comparison.relative_loss) == (0, 0, 0)


def test_a_loss_beyond_the_tolerance_is_refused_even_if_chance_could_explain_it() -> None:
    """Mean .5 against .6: a sixth is lost; one user gained much, so the interval reaches above 0."""
    verdict = judged([1.0, 0.4, 0.3, 0.3], [0.3, 0.7, 0.7, 0.7])
    assert verdict.comparison is not None
    assert verdict.comparison.relative_loss == pytest.approx(1 / 6)
    assert verdict.comparison.high > 0
    assert verdict.reasons == (Refusal.WORSE_THAN_INCUMBENT,)


def test_a_small_loss_that_chance_can_explain_passes() -> None:
    """Mean .49 against .5: a fiftieth is lost."""
    verdict = judged([0.86, 0.3, 0.4, 0.4], [0.5, 0.5, 0.5, 0.5])
    assert verdict.comparison is not None
    assert verdict.comparison.relative_loss == pytest.approx(0.02)
    assert verdict.comparison.high > 0
    assert verdict.passed


def test_a_small_loss_of_every_user_is_refused() -> None:
    """Everyone loses .01 of .5: within the tolerance, but no resample can be as good as the incumbent."""
    verdict = judged([0.49] * 4, [0.5] * 4)
    assert verdict.comparison is not None
    assert verdict.comparison.high == pytest.approx(-0.01)
    assert verdict.reasons == (Refusal.WORSE_THAN_INCUMBENT,)


@pytest.mark.parametrize(("tolerance", "passed"), [(0.2, True), (0.19, False)])
def test_a_loss_of_exactly_the_tolerance_is_tolerated(tolerance: float, passed: bool) -> None:
    """Mean .4 against .5; the interval reaches above 0."""
    assert judged([1.0, 0.2, 0.2, 0.2], [0.5] * 4, tolerance=tolerance).passed is passed


def test_too_few_users_are_refused_whatever_they_score() -> None:
    assert judged([1.0] * 3, [0.1] * 3).reasons == (Refusal.TOO_FEW_USERS,)
    nobody = judged([], [])
    assert (nobody.reasons, nobody.comparison) == ((Refusal.TOO_FEW_USERS,), None)


def test_weights_that_are_not_finite_are_refused_whatever_they_score() -> None:
    assert judged([1.0] * 4, [0.1] * 4, weights_finite=False).reasons == (Refusal.NON_FINITE_WEIGHTS,)
    both = judged([0.0] * 4, [0.5] * 4, weights_finite=False)
    assert both.reasons == (Refusal.NON_FINITE_WEIGHTS, Refusal.WORSE_THAN_INCUMBENT)


def test_nothing_can_be_lost_against_an_incumbent_that_scores_zero() -> None:
    verdict = judged([0.0] * 4, [0.0] * 4)
    assert verdict.passed
    assert verdict.comparison is not None
    assert verdict.comparison.relative_loss == 0


def test_users_that_do_not_pair_and_scores_that_are_no_numbers_are_defects() -> None:
    with pytest.raises(ValueError, match="same users"):
        judged([0.1] * 4, [0.1] * 5)
    with pytest.raises(ValueError, match="finite"):
        judged([0.1, float("nan"), 0.1, 0.1], [0.1] * 4)
    with pytest.raises(ValueError, match="one finite number"):
        judge([[0.1]], [[0.1]], weights_finite=True, min_users=1, tolerance=0, confidence=0.9, seed=0)


def test_the_interval_is_that_of_the_mean() -> None:
    """1,000 users, d of sd 1: the mean's 95 % interval is 1.96 / sqrt(1000) = .062 to each side."""
    differences = np.random.default_rng(1).standard_normal(1_000)
    low, high = paired_bootstrap(differences, confidence=0.95, seed=2)
    half = 1.96 * differences.std() / np.sqrt(1_000)
    assert (low, high) == (
        pytest.approx(differences.mean() - half, abs=0.006),
        pytest.approx(differences.mean() + half, abs=0.006),
    )


def test_two_users_give_the_interval_of_four_equal_resamples() -> None:
    """d = 0 and 1: the mean is 0, 1/2, 1/2, 1 with equal chance, so 95 % spans 0 to 1 and 40 % is 1/2 alone."""
    differences = np.array([0.0, 1.0])
    assert paired_bootstrap(differences, confidence=0.95, seed=0) == (0.0, 1.0)
    assert paired_bootstrap(differences, confidence=0.4, seed=0) == (0.5, 0.5)


def test_the_same_seed_gives_the_same_verdict() -> None:
    draw = np.random.default_rng(3)
    ours, theirs = draw.random(50), draw.random(50)
    assert compare(ours, theirs, confidence=0.9, seed=5) == compare(ours, theirs, confidence=0.9, seed=5)


def test_one_infinite_number_is_enough() -> None:
    good = {"a": np.zeros((2, 2), np.float32), "b": np.ones(3, np.float32)}
    assert all_finite(good)
    assert not all_finite(good | {"b": np.array([1, np.inf, 0], np.float32)})
