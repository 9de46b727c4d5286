"""Streams, popularity and the check of a few hand-written blocks."""

from datetime import timedelta

import numpy as np
import pytest

from service.errors import DatasetError
from trainer.backtest.data import BacktestData, Block, check_scorable, popularity_before, streams
from trainer.datasets import DatasetItem
from trainer.examples import Case

ITEMS = tuple(DatasetItem(i, i) for i in "abcdef")
DAY = 86_400.0


def block(*rows: tuple[int, int], days: list[float] | None = None) -> Block:
    """Of (user, item)."""
    columns = np.array(rows, dtype=np.int64).reshape(-1, 2)
    time = None if days is None else np.array(days) * DAY
    return Block(columns[:, 0], columns[:, 1], time)


def data(*blocks: Block) -> BacktestData:
    return BacktestData("small", "", ("ann", "bob"), ITEMS, blocks, None, ())


TWO = data(block((0, 0), (1, 1), (0, 2)), block((1, 3), (0, 4), (1, 5)))


def test_a_stream_holds_the_blocks_own_rows_and_what_lies_before_in_order() -> None:
    ann, bob = streams(TWO, 1)
    assert (ann.user_id, ann.earlier.tolist(), ann.window.tolist()) == ("ann", [0, 2], [4])
    assert (bob.user_id, bob.earlier.tolist(), bob.window.tolist()) == ("bob", [1], [3, 5])


def test_the_first_block_has_nothing_before_it() -> None:
    assert [(s.earlier.tolist(), s.window.tolist()) for s in streams(TWO, 0)] == [([], [0, 2]), ([], [1])]


def test_only_users_of_the_block_have_a_stream() -> None:
    assert [s.user_id for s in streams(data(block((0, 0), (1, 1)), block((1, 2))), 1)] == ["bob"]


def test_popularity_halves_with_each_half_life_before_the_newest_interaction() -> None:
    timed = data(block((0, 0), (0, 1), (1, 2), days=[0, 10, 20]), block((0, 3), days=[99]))
    assert popularity_before(timed, 1, timedelta(days=10)).tolist() == [0.25, 0.5, 1.0, 0.0, 0.0, 0.0]


def test_popularity_of_what_came_long_ago_stays_finite() -> None:
    timed = data(block((0, 0), (0, 1), days=[0, 15_000]), block((0, 3), days=[15_001]))
    assert popularity_before(timed, 1, timedelta(days=1)).tolist() == [2.0**-1000, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_popularity_without_timestamps_or_half_life_counts() -> None:
    plain = data(block((0, 0), (1, 0), (1, 1)), block((0, 2)))
    timed = data(block((0, 0), (1, 0), (1, 1), days=[0, 1, 2]), block((0, 2), days=[3]))
    assert popularity_before(plain, 1, timedelta(days=1)).tolist() == [1.0, 0.5, 0.0, 0.0, 0.0, 0.0]
    assert popularity_before(timed, 1, None).tolist() == [1.0, 0.5, 0.0, 0.0, 0.0, 0.0]


def test_what_something_is_scored_by_is_not_counted() -> None:
    """Bob is asked for the 0 that he took; ann took it twice, which counts."""
    rows, asked = ((0, 0), (0, 0), (0, 1), (1, 1), (1, 0)), [Case("bob", np.array([1]), 0, np.array([1]))]
    plain, timed = (
        data(block(*rows), block((0, 2))),
        data(block(*rows, days=[0, 10, 20, 20, 20]), block((0, 2), days=[99])),
    )
    assert popularity_before(plain, 1, None, without=asked)[:2].tolist() == [1.0, 1.0]
    assert popularity_before(timed, 1, timedelta(days=10), without=asked)[:2].tolist() == [0.75 / 2, 1.0]


def test_before_the_first_block_nothing_is_popular() -> None:
    assert popularity_before(TWO, 0, None).tolist() == [0.0] * 6


def test_one_user_with_enough_interactions_makes_a_block_scorable() -> None:
    check_scorable(data(block((0, 0), (0, 1)), block((0, 2), (0, 3), (1, 0))), min_events=2)


def test_a_block_whose_users_have_too_few_interactions_is_named() -> None:
    with pytest.raises(DatasetError, match=r"block 2 of small cannot be scored: none of its 2 users has 3 .*more data"):
        check_scorable(data(block((0, 0), (0, 1), (0, 2)), block((0, 3), (0, 4), (1, 0))), min_events=3)


def test_a_block_of_nothing_but_repeats_cannot_be_scored() -> None:
    with pytest.raises(DatasetError, match="block 2 of small"):
        check_scorable(data(block((0, 0), (0, 1)), block((0, 0), (0, 1), (0, 0))), min_events=2)
