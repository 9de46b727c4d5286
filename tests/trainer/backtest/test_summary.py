"""results.json from raw results of a few users, checked by hand."""

import math

import pytest

from service.errors import DatasetError
from tests.trainer.backtest.results import raw, task
from trainer.backtest.entries import ORDER
from trainer.backtest.summary import summarise

THIRD = 1 / math.log2(4)  # NDCG of rank 3: one half


def test_a_methods_means_are_over_users_then_blocks() -> None:
    found = summarise(raw(task("peso", 0, {2: [1, 0, 0, 0], 3: [3]})))["methods"]["peso"]
    assert found["ndcg@10"]["per_block"] == [0.25, THIRD]
    assert found["ndcg@10"]["mean"] == pytest.approx((0.25 + THIRD) / 2)
    assert found["hit@5"]["mean"] == pytest.approx((0.25 + 1.0) / 2)


def test_seeds_are_averaged_and_listed() -> None:
    found = summarise(raw(task("peso", 0, {2: [1, 0], 3: [1, 1]}), task("peso", 1, {2: [1, 1], 3: [0, 0]})))
    assert found["seeds"] == [0, 1]
    peso = found["methods"]["peso"]
    assert peso["hit@10"]["per_block"] == [0.75, 0.5]
    assert peso["hit@10"]["per_seed"] == {"0": 0.75, "1": 0.5}
    assert peso["complete"]


def test_a_gain_is_against_single_evolving_with_the_same_seeds() -> None:
    found = summarise(
        raw(
            task("single-evolving", 0, {2: [3, 3], 3: [3]}),
            task("single-evolving", 1, {2: [0, 0], 3: [0]}),  # peso has not come to this seed
            task("peso", 0, {2: [1, 1], 3: [1]}),
        )
    )["methods"]["peso"]["ndcg@10"]["vs_single_evolving"]
    assert found["difference"] == pytest.approx(1 - THIRD)
    assert found["ci95"] == pytest.approx([1 - THIRD, 1 - THIRD])
    assert found["relative"] == pytest.approx((1 - THIRD) / THIRD)


def test_a_users_seeds_are_averaged_before_users_are_drawn() -> None:
    # Each user gains in one seed what they lose in the other: no user differs, so the interval is a point.
    found = summarise(
        raw(
            task("single-evolving", 0, {2: [1, 0], 3: [0]}),
            task("single-evolving", 1, {2: [0, 1], 3: [0]}),
            task("peso", 0, {2: [0, 1], 3: [0]}),
            task("peso", 1, {2: [1, 0], 3: [0]}),
        )
    )["methods"]["peso"]["ndcg@10"]["vs_single_evolving"]
    assert (found["difference"], found["ci95"]) == (0.0, [0.0, 0.0])


def test_single_evolving_stands_against_itself() -> None:
    found = summarise(raw(task("single-evolving", 0, {2: [1, 0], 3: [0]})))["methods"]["single-evolving"]
    assert found["hit@5"]["vs_single_evolving"] == {"difference": 0.0, "ci95": [0.0, 0.0], "relative": 0.0}


def test_without_single_evolving_there_is_no_gain() -> None:
    found = summarise(raw(task("peso", 0, {2: [1], 3: [1]})))["methods"]["peso"]
    assert found["ndcg@10"]["vs_single_evolving"] is None
    assert found["against"] is None


def test_a_baseline_that_scores_nothing_has_no_relative_gain() -> None:
    found = summarise(raw(task("single-evolving", 0, {2: [0], 3: [0]}), task("peso", 0, {2: [1], 3: [1]})))
    gain = found["methods"]["peso"]["hit@5"]["vs_single_evolving"]
    assert (gain["difference"], gain["relative"]) == (1.0, None)


def test_a_learning_rate_is_held_against_single_evolving_at_that_rate() -> None:
    found = summarise(
        raw(
            task("single-evolving", 0, {2: [1], 3: [1]}),
            task("single-evolving", 0, {2: [0], 3: [0]}, {"learning_rate": 0.1}),
            task("peso", 0, {2: [1], 3: [1]}, {"learning_rate": 0.1}),
            task("peso", 0, {2: [1], 3: [1]}, {"learning_rate": 0.002}),
            task("peso", 0, {2: [1], 3: [1]}, {"learning_rate": 0.5}),
            task("peso", 0, {2: [1], 3: [0]}, {"lambda": 5.0}),
        )
    )
    rows = {tuple(v["variant"].items()): v for v in found["variants"] if v["method"] == "peso"}
    slow, fast, default = (rows[("learning_rate", rate),] for rate in (0.1, 0.5, 0.002))
    assert slow["against"] == {"method": "single-evolving", "variant": {"learning_rate": 0.1}}
    assert slow["hit@5"]["vs_single_evolving"]["difference"] == 1.0
    assert fast["against"] is None
    assert default["against"] == {"method": "single-evolving", "variant": {}}
    assert rows[("lambda", 5.0),]["hit@5"]["vs_single_evolving"]["difference"] == -0.5


def test_a_rank_is_held_against_single_evolving_of_that_rank_and_that_against_the_rank_of_the_settings() -> None:
    found = summarise(
        raw(
            task("single-evolving", 0, {2: [0], 3: [1]}),
            task("single-evolving", 0, {2: [1], 3: [1]}, {"rank": 32}),
            task("peso", 0, {2: [0], 3: [0]}, {"rank": 32}),
        )
    )
    single, peso = sorted(found["variants"], key=lambda row: str(row["method"]), reverse=True)
    assert single["against"] == {"method": "single-evolving", "variant": {}}
    assert single["hit@5"]["vs_single_evolving"]["difference"] == 0.5
    assert peso["against"] == {"method": "single-evolving", "variant": {"rank": 32}}
    assert peso["hit@5"]["vs_single_evolving"]["difference"] == -1.0


def test_next_items_are_averaged_over_a_users_then_over_users_and_have_gains_of_their_own() -> None:
    single = {2: [("a", 0), ("b", 0), ("a", 0)], 3: [("b", 0)]}
    peso = {2: [("a", 1), ("b", 0), ("a", 1)], 3: [("b", 3)]}
    found = summarise(
        raw(
            task("single-evolving", 0, {2: [1], 3: [1]}, prequential=single),
            task("peso", 0, {2: [1], 3: [1]}, prequential=peso),
            task("peso", 0, {2: [1], 3: [1]}, {"lambda": 5.0}, prequential=single),
        )
    )
    asked = found["methods"]["peso"]["prequential"]
    assert asked["ndcg@10"]["per_block"] == [0.5, THIRD]  # a: 1 twice, b: 0
    assert asked["ndcg@10"]["vs_single_evolving"]["difference"] == pytest.approx((0.5 + THIRD) / 2)
    assert found["methods"]["peso"]["ndcg@10"]["vs_single_evolving"]["difference"] == 0.0  # of the held-out items
    low, high = asked["ndcg@10"]["vs_single_evolving"]["ci95"]  # people are drawn, not items: a or b, each with both
    assert (low, high) == pytest.approx((THIRD / 2, 1.0))
    assert found["variants"][0]["prequential"]["hit@10"]["mean"] == 0.0


def test_results_of_an_earlier_version_have_no_next_items() -> None:
    found = summarise(raw(task("peso", 0, {2: [1], 3: [1]})))
    assert found["methods"]["peso"]["prequential"] is None


def test_methods_come_in_the_papers_order_and_sweeps_by_value() -> None:
    names = ["peso", "single-evolving", "popularity", "sum-lora-latest-inherit", "pretrain", "novel"]
    sweep = [task("peso", 0, {2: [1], 3: [1]}, {"lambda": value}) for value in (50.0, 0.5, 8.0)]
    found = summarise(raw(*(task(name, 0, {2: [1], 3: [1]}) for name in names), *sweep))
    assert list(found["methods"]) == [*(name for name in ORDER if name in names), "novel"]
    assert [row["variant"]["lambda"] for row in found["variants"]] == [0.5, 8.0, 50.0]


def test_what_is_not_done_is_marked_and_shown_as_far_as_it_is() -> None:
    found = summarise(
        raw(
            task("single-evolving", 0, {2: [3], 3: [3]}),
            task("single-evolving", 1, {2: [3], 3: [3]}),
            task("peso", 0, {2: [1], 3: [1]}),
            task("peso", 1, {2: [1]}),
            planned=6,
        )
    )
    assert (found["complete"], found["tasks_done"], found["tasks_planned"]) == (False, 3, 6)
    assert found["methods"]["single-evolving"]["complete"]
    peso = found["methods"]["peso"]
    assert not peso["complete"]
    assert peso["ndcg@10"]["per_block"] == [1.0, 1.0]
    assert list(peso["ndcg@10"]["per_seed"]) == ["0"]


def test_a_block_nobody_came_to_is_none() -> None:
    found = summarise(raw(task("peso", 0, {2: [1]}), task("single-evolving", 0, {2: [3], 3: [1]})))["methods"]["peso"]
    assert found["ndcg@10"]["per_block"] == [1.0, None]
    assert found["ndcg@10"]["mean"] == 1.0
    assert found["ndcg@10"]["vs_single_evolving"]["difference"] == pytest.approx(1 - THIRD)


def test_nothing_done_yet_gives_empty_results() -> None:
    found = summarise(raw(planned=3))
    assert (found["methods"], found["variants"], found["groups"], found["complete"]) == ({}, [], {}, False)


def test_costs_are_a_seeds_mean_time_and_the_largest_sizes() -> None:
    found = summarise(
        raw(
            task("peso", 0, {2: [1], 3: [1]}, seconds=4.0, stored_bytes=10, ratio=[0.1, 0.3], weight=2.0),
            task("peso", 1, {2: [1], 3: [1]}, seconds=8.0, stored_bytes=30, ratio=0.4, weight=4.0),
        )
    )["methods"]["peso"]
    assert (found["seconds"], found["trainable_parameters"], found["stored_bytes"]) == (6.0, 1_000, 30)
    assert found["gradient_ratio"] == pytest.approx((0.2 + 0.2 + 0.4 + 0.4) / 4)
    assert found["penalty_weight"] == 3.0


def test_a_method_without_a_penalty_has_no_gradient_ratio() -> None:
    found = summarise(raw(task("single-evolving", 0, {2: [1], 3: [1]})))["methods"]["single-evolving"]
    assert found["gradient_ratio"] is None


def test_stages_begin_with_pretrain_and_end_with_what_was_forgotten() -> None:
    still = {2: {1: [1], 2: [3], 3: [0]}, 3: {1: [1], 2: [3], 3: [0]}}
    moved = {2: {1: [3], 2: [1], 3: [3]}, 3: {1: [0], 2: [3], 3: [1]}}
    found = summarise(
        raw(task("pretrain", 0, {2: [3], 3: [0]}, across=still), task("peso", 0, {2: [1], 3: [1]}, across=moved))
    )["methods"]["peso"]
    assert found["stages"] == [[1.0, THIRD, 0.0], [THIRD, 1.0, THIRD], [0.0, THIRD, 1.0]]
    assert found["forgetting"] == pytest.approx(((1.0 - 0.0) + (1.0 - THIRD)) / 2)
    assert found["backward_transfer"] == pytest.approx(((0.0 - 1.0) + (THIRD - 1.0)) / 2)
    assert found["forward_transfer"] == pytest.approx(THIRD - 0.0)


def test_without_pretrain_the_first_stage_is_not_known() -> None:
    across = {2: {1: [1], 2: [1], 3: [0]}, 3: {1: [3], 2: [1], 3: [0]}}
    found = summarise(raw(task("peso", 0, {2: [1], 3: [0]}, across=across)))["methods"]["peso"]
    assert found["stages"][0] == [None, None, None]
    assert (found["forgetting"], found["backward_transfer"], found["forward_transfer"]) == (None, None, None)


def test_a_ranker_says_itself_what_it_knew_first_and_popularity_has_no_stages() -> None:
    across = {2: {1: [3], 2: [1], 3: [0]}, 3: {1: [3], 2: [1], 3: [1]}}
    first = {"1": [1], "2": [0], "3": [0]}
    rows = [task(method, 0, {2: [1], 3: [1]}, across=across, first_stage=first) for method in ("sasrec", "popularity")]
    found = summarise(raw(*rows))["methods"]
    assert found["sasrec"]["stages"][0] == [1.0, 0.0, 0.0]
    assert found["sasrec"]["forgetting"] == pytest.approx((1.0 - THIRD + 0.0) / 2)
    assert found["popularity"]["stages"] is None


def test_forgetting_is_that_of_each_seed_and_of_seeds_that_have_all_stages() -> None:
    """A seed whose first stage is not known, or another seed's, would be compared with what it never was."""
    start = {2: {1: [1], 2: [0], 3: [0]}, 3: {1: [1], 2: [0], 3: [0]}}
    weak = {2: {1: [0], 2: [0], 3: [0]}, 3: {1: [0], 2: [0], 3: [0]}}
    lost = {2: {1: [3], 2: [1], 3: [0]}, 3: {1: [0], 2: [3], 3: [1]}}
    one = [
        task("pretrain", 0, {2: [0], 3: [0]}, across=start),
        task("peso", 0, {2: [1], 3: [1]}, across=lost),
    ]
    alone = summarise(raw(*one))["methods"]["peso"]
    with_another_base = summarise(raw(*one, task("pretrain", 1, {2: [0], 3: [0]}, across=weak)))["methods"]["peso"]
    with_a_seed_without = summarise(raw(*one, task("peso", 1, {2: [1], 3: [1]}, across=weak)))["methods"]["peso"]

    assert alone["forgetting"] == pytest.approx((1.0 + (1.0 - THIRD)) / 2)
    for found in (with_another_base, with_a_seed_without):
        for key in ("forgetting", "backward_transfer", "forward_transfer"):
            assert found[key] == alone[key]


def test_a_seed_that_was_planned_and_has_nothing_yet_is_missing() -> None:
    found = summarise(raw(task("peso", 0, {2: [1], 3: [1]}), planned=4, planned_seeds=[0, 1], not_begun=["l2"]))
    assert (found["seeds"], found["not_begun"]) == ([0], ["l2"])
    assert not found["methods"]["peso"]["complete"]


def test_groups_are_halves_of_each_blocks_users() -> None:
    users = [f"u{i}" for i in range(4)]
    groups = {
        "2": {"users": users, "drift": [0.9, 0.8, 0.1, None], "history": [1, 2, 3, 4]},
        "3": {"users": users, "drift": [0.0, 0.1, 0.8, 0.9], "history": [1, 2, 3, 4]},
    }
    found = summarise(
        raw(
            task("single-evolving", 0, {2: [0, 0, 0, 0], 3: [0, 0, 0, 0]}),
            task("peso", 0, {2: [1, 0, 0, 1], 3: [0, 0, 1, 1]}),
            groups=groups,
        )
    )["groups"]
    assert found["drifted"]["users"] == {"2": 1, "3": 2}  # above .8, above .45
    assert found["drifted"]["gains"]["peso"]["difference"] == 1.0
    assert found["steady"]["gains"]["peso"]["difference"] == 0.0
    assert found["long history"]["gains"]["peso"]["difference"] == pytest.approx((0.5 + 1.0) / 2)
    assert found["short history"]["gains"]["peso"]["difference"] == pytest.approx((0.5 + 0.0) / 2)


def test_groups_of_next_items_are_halves_of_those_who_are_asked() -> None:
    asked = {2: [("c", 1), ("a", 3), ("a", 0), ("b", 0)], 3: [("a", 1)]}
    nothing = {block: [(user, 0) for user, _ in own] for block, own in asked.items()}
    groups = {
        "2": {"users": ["a", "b", "c"], "drift": [0.9, 0.1, None], "history": [5, 2, 0]},
        "3": {"users": ["a"], "drift": [0.5], "history": [8]},
    }
    scored = {2: [0], 3: [0]}  # on last items, of another user, nobody gains
    tasks = (
        task("single-evolving", 0, scored, prequential=nothing),
        task("peso", 0, scored, prequential=asked),
        task("l2", 0, scored),  # of an earlier version: not asked
    )
    found = summarise(raw(*tasks, prequential_groups=groups))
    assert (found["groups"], "l2" in found["prequential_groups"]["drifted"]["metrics"]) == ({}, False)
    found = {name: own["gains"]["peso"] for name, own in found["prequential_groups"].items()}
    assert found["drifted"]["difference"] == pytest.approx(THIRD / 2)  # a, in block 2; alone, in block 3, in no half
    assert found["steady"]["difference"] == 0  # b
    assert found["long history"]["difference"] == pytest.approx(THIRD / 2)
    assert found["short history"]["difference"] == pytest.approx((0 + 1) / 2)
    assert found["new users"]["difference"] == 1
    assert found["known users"]["difference"] == pytest.approx((THIRD / 4 + 1) / 2)


def test_new_users_and_new_items_are_measured_apart_from_those_that_are_known() -> None:
    users = [f"u{i}" for i in range(4)]
    same = {"users": users, "drift": [None, 0.1, 0.2, None]}
    groups = {
        "2": same | {"history": [0, 3, 4, 0], "new_items": [True, True, False, False]},
        "3": same | {"history": [2, 3, 4, 5], "new_items": [False, False, False, True]},
    }
    found = summarise(
        raw(
            task("single-evolving", 0, {2: [0, 0, 0, 0], 3: [0, 0, 0, 0]}),
            task("peso", 0, {2: [1, 0, 0, 3], 3: [1, 1, 0, 3]}),
            groups=groups,
        )
    )["groups"]
    assert found["new users"]["users"] == {"2": 2, "3": 0}
    assert found["new users"]["metrics"]["peso"]["ndcg@10"] == pytest.approx((1 + THIRD) / 2)  # of block 2 alone
    assert found["known users"]["metrics"]["peso"]["ndcg@10"] == pytest.approx((0 + (1 + 1 + 0 + THIRD) / 4) / 2)
    assert found["new items"]["metrics"]["peso"]["hit@5"] == pytest.approx((0.5 + 1) / 2)
    assert found["known items"]["metrics"]["peso"]["hit@5"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert found["new users"]["gains"]["peso"]["difference"] == pytest.approx((1 + THIRD) / 2)
    assert found["new items"]["metrics"]["single-evolving"]["ndcg@10"] == 0


def test_tasks_on_other_users_are_not_compared() -> None:
    other = task("peso", 0, {2: [1, 0], 3: [1]})
    with pytest.raises(DatasetError, match="peso, seed 0, block 2 was scored on other users"):
        summarise(raw(task("single-evolving", 0, {2: [1], 3: [1]}), other))


def test_groups_of_other_users_are_refused() -> None:
    groups = {"2": {"users": ["somebody"], "drift": [0.1], "history": [1]}}
    with pytest.raises(DatasetError, match="user groups of block 2"):
        summarise(raw(task("peso", 0, {2: [1], 3: [1]}), groups=groups))


def test_raw_results_of_another_format_are_refused() -> None:
    with pytest.raises(DatasetError, match="format 2"):
        summarise({**raw(), "format": 2})
