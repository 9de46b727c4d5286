"""Interactions into blocks, by time and with users kept apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import DatasetError
from trainer.backtest.splits import block_sizes, chronological, user_disjoint


def test_the_first_block_has_its_share_and_the_others_are_alike() -> None:
    assert block_sizes(100, 5, 0.6).tolist() == [60, 10, 10, 10, 10]


def test_what_does_not_divide_evenly_is_spread_over_the_blocks() -> None:
    assert block_sizes(33, 5, 0.6).tolist() == [20, 3, 3, 3, 4]


def test_interactions_keep_their_order_in_time() -> None:
    assert chronological(10, 3, 0.6).tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 2, 2]


def test_too_few_interactions_for_the_blocks_are_refused() -> None:
    with pytest.raises(DatasetError, match="4 interactions are too few for 5 blocks; give more"):
        block_sizes(4, 5, 0.6)


@pytest.mark.parametrize(("blocks", "share"), [(1, 0.6), (3, 0.0), (3, 1.0)])
def test_a_cut_that_leaves_no_increment_is_refused(blocks: int, share: float) -> None:
    with pytest.raises(DatasetError, match="take at least 2 blocks"):
        block_sizes(100, blocks, share)


def test_a_user_is_in_one_block_only() -> None:
    user = np.random.default_rng(0).integers(50, size=1_000)
    block = user_disjoint(user, 5, 0.6, seed=1)
    assert all(len(np.unique(block[user == own])) == 1 for own in range(50))


def test_users_of_one_interaction_give_exactly_the_chronological_sizes() -> None:
    block = user_disjoint(np.arange(100), 5, 0.6, seed=0)
    assert np.bincount(block).tolist() == [60, 10, 10, 10, 10]


def test_the_same_seed_gives_the_same_partition_and_another_seed_another() -> None:
    user = np.repeat(np.arange(40), 5)
    first, again, other = (user_disjoint(user, 4, 0.5, seed).tolist() for seed in (7, 7, 8))
    assert first == again != other


def test_fewer_users_than_blocks_are_refused() -> None:
    with pytest.raises(DatasetError, match="2 users cannot be partitioned into 3 blocks"):
        user_disjoint(np.array([0, 1] * 10), 3, 0.6, seed=0)


def test_a_user_with_most_interactions_leaves_a_user_to_every_block() -> None:
    user = np.array([0] * 1_000 + [1, 2, 3])
    for seed in range(20):
        assert (np.bincount(user_disjoint(user, 4, 0.6, seed), minlength=4) > 0).all()


@given(counts=st.lists(st.integers(1, 30), min_size=30, max_size=60), seed=st.integers(0, 9))
def test_a_boundary_is_off_by_half_a_user_at_most(counts: list[int], seed: int) -> None:
    user = np.repeat(np.arange(len(counts)), counts)
    wanted = np.cumsum(block_sizes(len(user), 3, 0.6))
    found = np.cumsum(np.bincount(user_disjoint(user, 3, 0.6, seed), minlength=3))
    assert np.abs(found - wanted).max() <= max(counts) / 2
