"""One list out of several searches: its scores are of one model, or all of popularity."""

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from service.recommend.compose import Parts, Ranked, compose
from service.recommend.ranking import RankedRows, Selection
from service.recommend.schemas import FallbackReason, Strategy

NOTHING = np.empty(0, dtype=np.int64)
MAIN = Selection(4, NOTHING, np.array([0, 1]))
FILL = Selection(4, np.array([0, 1]))
COLD = Selection(4, NOTHING, np.array([1, 5, 6]))
POPULARITY = np.arange(10) / 10


def ranked(*rows: int, version: str | None = "v1") -> Ranked:
    return Ranked.by_model(RankedRows(np.array(rows, dtype=np.int64), -np.arange(len(rows)) - 1.0), "b", version)


OVERLOADED = Ranked(RankedRows(np.array([9]), np.array([0.9])), Strategy.POPULAR, FallbackReason.OVERLOADED)


def composed(parts: Parts, rank: Callable[[Selection], Ranked]) -> Ranked:
    async def by_model(part: Selection) -> Ranked:
        return rank(part)

    async def popular(part: Selection, reason: FallbackReason | None) -> Ranked:
        left = np.setdiff1d(np.arange(10) if part.allowed is None else part.allowed, part.excluded)[::-1][: part.limit]
        return Ranked(RankedRows(left, POPULARITY[left]), Strategy.POPULAR, reason)

    return asyncio.run(compose(parts, by_model, popular, POPULARITY, "r-1"))


def test_what_fills_a_list_stands_behind_what_meets_the_filters_and_cold_items_last() -> None:
    found = {id(MAIN): ranked(1, 0), id(FILL): ranked(7, 8, 9, 2), id(COLD): ranked(5, 1, 6)}
    filled = composed(Parts(MAIN, FILL, None, 0), lambda part: found[id(part)])
    assert (filled.rows.rows.tolist(), filled.outside, filled.cold) == ([1, 0, 7, 8], {7, 8}, frozenset())
    both = composed(Parts(MAIN, FILL, COLD, 1), lambda part: found[id(part)])
    assert (both.rows.rows.tolist(), both.outside, both.cold) == ([1, 0, 7, 5], {7}, {5})
    assert both.rows.scores.tolist() == [-1, -2, -1, -1]


def test_a_cold_item_that_the_list_has_anyhow_takes_no_second_place() -> None:
    found = {id(MAIN): ranked(2, 5, 3, 6), id(COLD): ranked(5, 6, 1)}
    assert composed(Parts(MAIN, None, COLD, 2), lambda part: found[id(part)]).rows.rows.tolist() == [2, 5, 6, 1]
    assert composed(Parts(MAIN, None, COLD, 4), lambda part: found[id(part)]).rows.rows.tolist() == [2, 5, 6, 1]
    few = {id(MAIN): ranked(2, 5, 3, 6), id(COLD): ranked(6)}
    assert composed(Parts(MAIN, None, COLD, 3), lambda part: few[id(part)]).rows.rows.tolist() == [2, 5, 3, 6]


def test_parts_that_two_models_ranked_are_asked_for_once_more() -> None:
    answers = iter([ranked(0), ranked(7, version="v2"), ranked(1, version="v2"), ranked(8, version="v2")])
    found = composed(Parts(MAIN, FILL, None, 0), lambda part: next(answers))
    assert (found.rows.rows.tolist(), found.adapter_version) == ([1, 8], "v2")


@pytest.mark.parametrize("overloaded", [MAIN, FILL])
def test_when_the_model_answers_for_a_part_only_the_whole_list_is_popular(overloaded: Selection) -> None:
    asked: list[Selection] = []

    def rank(part: Selection) -> Ranked:
        asked.append(part)
        return OVERLOADED if part is overloaded else ranked(7)

    found = composed(Parts(MAIN, FILL, None, 0), rank)
    assert found.rows.rows.tolist() == [1, 0, 9, 8]
    assert (found.strategy, found.reason, found.base_id) == ("popular", "overloaded", None)
    assert len(asked) == 2  # nobody is asked again while there is too much to do


def test_without_a_model_cold_items_are_drawn_and_the_same_each_time_for_one_id() -> None:
    popular = Ranked(RankedRows(np.array([1, 0, 2, 3]), np.array([0.4, 0.3, 0.2, 0.1])), Strategy.POPULAR, None)
    found = [composed(Parts(MAIN, None, COLD, 2), lambda part: popular) for _ in range(3)]
    assert len({tuple(one.rows.rows.tolist()) for one in found}) == 1
    assert found[0].rows.rows.tolist()[:2] == [1, 0]
    assert found[0].cold == {5, 6}
