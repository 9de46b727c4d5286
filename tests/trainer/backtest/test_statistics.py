"""Means, intervals, forgetting and halves, against numbers done by hand and the gate's own bootstrap."""

import math

import numpy as np
import pytest

from trainer.backtest.statistics import (
    METRICS,
    bootstrap_intervals,
    halves,
    mean_over_blocks,
    transfer,
    user_scores,
)
from trainer.gate import paired_bootstrap

NAN = math.nan


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)[:, None]


def apart(*counts: int) -> list[list[str]]:
    """Users of blocks that have nobody in common."""
    return [[f"{block} {i}" for i in range(count)] for block, count in enumerate(counts)]


def test_a_users_scores_follow_from_the_rank() -> None:
    assert METRICS == ("hit@5", "hit@10", "ndcg@5", "ndcg@10")
    third, seventh = 1 / math.log2(4), 1 / math.log2(8)
    expected = [[1, 1, 1, 1], [1, 1, third, third], [0, 1, 0, seventh], [0, 0, 0, 0]]
    assert user_scores([1, 3, 7, 0]).tolist() == pytest.approx(np.array(expected))


def test_blocks_count_alike_however_many_users_they_have() -> None:
    assert mean_over_blocks([column(1.0, 0.0, 0.0, 0.0), column(0.75)]).tolist() == [0.5]


def test_for_one_block_the_interval_is_the_gates() -> None:
    differences = np.random.default_rng(0).normal(0.1, 1.0, 57)
    expected = paired_bootstrap(differences, confidence=0.9, resamples=500, seed=4)
    found = bootstrap_intervals([differences[:, None]], apart(57), confidence=0.9, resamples=500, seed=4)
    assert found.tolist() == [pytest.approx(expected)]


def test_a_difference_that_every_user_shares_has_no_width() -> None:
    found = bootstrap_intervals([column(0.5, 0.5), column(0.25, 0.25)], [["a", "b"], ["a", "b"]])
    assert found.tolist() == [pytest.approx([0.375, 0.375])]


def test_a_user_of_several_blocks_is_drawn_in_all_of_them_at_once() -> None:
    # Whoever gains in one block loses as much in the other: whoever is drawn, the blocks' means cancel out.
    found = bootstrap_intervals([column(0.0, 1.0), column(1.0, 0.0)], [["a", "b"], ["a", "b"]])
    assert found.tolist() == [[0.5, 0.5]]
    # The same numbers of other people do not: one of 16 draws is 0 in both blocks.
    assert bootstrap_intervals([column(0.0, 1.0), column(1.0, 0.0)], apart(2, 2)).tolist() == [[0.0, 1.0]]


def test_a_user_is_told_by_id_and_not_by_place() -> None:
    assert bootstrap_intervals([column(0.0, 1.0), column(0.0, 1.0)], [["a", "b"], ["b", "a"]]).tolist() == [[0.5, 0.5]]


def test_a_block_of_which_nobody_was_drawn_does_not_count_in_that_draw() -> None:
    # Of two blocks of one user each a draw is 0, 1 or, with both, their mean.
    assert bootstrap_intervals([column(0.0), column(1.0)], [["a"], ["b"]]).tolist() == [[0.0, 1.0]]


def test_the_interval_of_two_users_holds_every_outcome() -> None:
    # Both draws are the same user in one of two cases: more than the 2.5 % that an interval leaves out.
    same = [["a", "b"], ["a", "b"]]
    assert bootstrap_intervals([column(0.0, 1.0), column(0.0, 1.0)], same).tolist() == [[0.0, 1.0]]


def width(blocks: list[np.ndarray], users: list[list[str]] | None = None) -> float:
    low, high = bootstrap_intervals(blocks, users or apart(*map(len, blocks)))[0]
    return float(high - low)


def test_blocks_of_the_same_people_are_less_evidence_than_blocks_of_others() -> None:
    # A user who gains the same in all four blocks is one person's worth of chance, not four: twice the width.
    own = np.random.default_rng(5).normal(0.0, 1.0, (300, 1))
    people = [f"u{i}" for i in range(300)]
    assert width([own] * 4, [people] * 4) == pytest.approx(2 * width([own] * 4), rel=0.1)


def test_people_of_one_block_each_are_drawn_as_cells_would_be() -> None:
    random = np.random.default_rng(6)
    blocks = [random.normal(0.0, 1.0, (count, 1)) for count in (90, 150, 400)]
    cells = np.mean([block[random.integers(len(block), size=(2_000, len(block))), 0].mean(1) for block in blocks], 0)
    low, high = np.quantile(cells, [0.025, 0.975])
    assert bootstrap_intervals(blocks, apart(90, 150, 400))[0].tolist() == pytest.approx([low, high], abs=0.01)


def test_columns_share_their_draws() -> None:
    own = np.random.default_rng(1).normal(size=(40, 1))
    both = bootstrap_intervals([np.concatenate([own, 2 * own], axis=1)], apart(40))
    assert both[1].tolist() == pytest.approx((2 * both[0]).tolist())


def test_the_interval_is_as_wide_as_the_standard_error_says() -> None:
    random = np.random.default_rng(2)
    blocks = [random.normal(0.0, 1.0, (400, 1)) for _ in range(4)]
    error = math.sqrt(sum(block.var() / 400 for block in blocks)) / 4
    assert width(blocks) == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_the_same_seed_gives_the_same_interval() -> None:
    blocks = [np.random.default_rng(3).normal(size=(30, 2))]
    first, again, other = (bootstrap_intervals(blocks, apart(30), seed=seed).tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_forgetting_and_transfer_by_hand() -> None:
    found = transfer(
        np.array(
            [
                [0.50, 0.10, 0.10],
                [0.40, 0.30, 0.15],
                [0.20, 0.25, 0.40],
            ]
        )
    )
    assert found.forgetting == pytest.approx(((0.50 - 0.20) + (0.30 - 0.25)) / 2)
    assert found.backward == pytest.approx(((0.20 - 0.50) + (0.25 - 0.30)) / 2)
    assert found.forward == pytest.approx(0.15 - 0.10)


def test_what_a_block_gains_before_it_is_learnt_is_not_forgotten() -> None:
    matrix = np.array([[0.5, 0.9, 0.0], [0.5, 0.3, 0.0], [0.5, 0.3, 0.4]])
    assert transfer(matrix).forgetting == 0.0


def test_transfer_leaves_out_what_is_not_known() -> None:
    found = transfer(np.array([[NAN, NAN, NAN], [0.4, 0.3, 0.1], [0.2, 0.2, 0.4]]))
    assert found.forgetting == pytest.approx((0.2 + 0.1) / 2)
    assert found.backward == pytest.approx(-0.1)
    assert found.forward is None


def test_two_blocks_have_no_forward_transfer_and_one_has_nothing() -> None:
    assert transfer(np.array([[0.5, 0.1], [0.4, 0.3]])).forward is None
    assert transfer(np.array([[0.5]])) == transfer(np.array([[NAN]]))


def test_halves_part_at_the_median_and_leave_out_who_has_no_value() -> None:
    above, below = halves([0.1, None, 0.4, 0.2])
    assert above.tolist() == [False, False, True, False]
    assert below.tolist() == [True, False, False, True]


def test_the_largest_value_is_the_upper_half_where_most_share_it() -> None:
    above, below = halves([1.0, 0.5, None, 1.0, 0.2, 1.0])
    assert above.tolist() == [True, False, False, True, False, True]
    assert below.tolist() == [False, True, False, False, True, False]


def test_users_who_are_all_alike_are_in_neither_half() -> None:
    above, below = halves([1.0, None, 1.0])
    assert not above.any()
    assert not below.any()


def test_without_values_both_halves_are_empty() -> None:
    above, below = halves([None, None])
    assert not above.any()
    assert not below.any()
