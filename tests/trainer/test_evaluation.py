"""Hit and NDCG by pencil, and ranks against a brute-force ranking of the whole catalogue."""

import math

import numpy as np
import pytest

from service.catalog.index import CatalogueIndex, IndexedItem
from service.generation.backbone import Backbone
from service.generation.reference import score_items
from service.generation.torch_engine import TorchModel
from service.recommend.ranking import rank_popular
from tests.models import tiny_backbone
from trainer.evaluation import (
    Metrics,
    cold_and_known,
    metrics,
    model_ranks,
    ndcg,
    popularity_ranks,
    user_means,
    user_ndcg,
    validation_loss,
)
from trainer.examples import Case

ITEMS = 60


def case(history: list[int], target: int, user: str = "u", seen: list[int] | None = None) -> Case:
    rows = np.array(history, dtype=np.int64)
    return Case(user, rows, target, np.unique(np.array(seen, dtype=np.int64) if seen is not None else rows))


def catalogue() -> CatalogueIndex:
    """60 items: every third pair shares a semantic ID, every seventh is unavailable, every eleventh has no codes."""
    random = np.random.default_rng(3)
    codes = random.integers(0, [9, 7, 5, 256], size=(ITEMS, 4))
    codes[1::3] = codes[0:-1:3]
    return CatalogueIndex(
        tuple(
            IndexedItem(
                str(row),
                str(row),
                (),
                row % 7 != 6,
                None if row % 11 == 10 else tuple(map(int, own)),  # type: ignore[arg-type]
            )
            for row, own in enumerate(codes)
        ),
        1,
        "b-1",
    )


def brute_force(backbone: Backbone, index: CatalogueIndex, popularity: np.ndarray, one: Case) -> int:
    """Score every item, drop what may not be shown, sort, look the target up."""
    history = index.codes[[row for row in one.history if index.codes[row, 0] >= 0]]
    shown = [r for r in range(ITEMS) if index.available[r] and index.codes[r, 0] >= 0 and r not in one.seen]
    scores = dict(zip(shown, score_items(backbone, history, index.codes[shown]).round(5).tolist(), strict=True))
    ranking = sorted(shown, key=lambda row: (-scores[row], -popularity[row], row))
    return ranking.index(one.target) + 1 if one.target in ranking[:10] else 0


def test_metrics_by_pencil() -> None:
    found = metrics(np.array([1, 3, 6, 0, 10, 5]))

    assert found.users == 6
    assert found.hit_5 == pytest.approx(3 / 6)
    assert found.hit_10 == pytest.approx(5 / 6)
    assert found.ndcg_5 == pytest.approx((1 + 1 / 2 + 1 / math.log2(6)) / 6)
    assert found.ndcg_10 == pytest.approx((1 + 1 / 2 + 1 / math.log2(7) + 1 / math.log2(11) + 1 / math.log2(6)) / 6)
    assert list(found.as_dict()) == ["hit@5", "hit@10", "ndcg@5", "ndcg@10"]


def test_a_users_ndcg_is_one_at_the_top_and_zero_beyond_the_list() -> None:
    ranks = np.array([1, 2, 3, 4, 5, 6, 0])

    assert ndcg(ranks, 5).tolist() == pytest.approx(
        [1, 1 / math.log2(3), 1 / 2, 1 / math.log2(5), 1 / math.log2(6), 0, 0]
    )


def test_nobody_gives_zeros() -> None:
    nobody = np.empty(0, dtype=np.int64)

    assert metrics(nobody) == Metrics(0, 0, 0, 0, 0)
    assert user_means(nobody, []) == Metrics(0, 0, 0, 0, 0)


def test_a_user_with_many_cases_weighs_as_much_as_one_with_one() -> None:
    cases = [case([0], 1, user) for user in ("busy", "quiet", "busy", "busy", "busy")]

    found = user_means(np.array([1, 0, 0, 3, 0]), cases)

    assert found.users == 2
    assert found.hit_5 == found.hit_10 == pytest.approx((2 / 4 + 0) / 2)
    assert found.ndcg_10 == pytest.approx(((1 + 1 / 2) / 4 + 0) / 2)


def test_with_one_case_a_user_the_means_are_the_metrics() -> None:
    ranks = np.array([1, 0, 7, 4])

    found = user_means(ranks, [case([0], 1, user) for user in "dacb"])

    assert list(found.as_dict().values()) == pytest.approx(list(metrics(ranks).as_dict().values()))


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_model_ranks_are_those_of_a_brute_force_ranking(batch_size: int) -> None:
    backbone, index = tiny_backbone(), catalogue()
    random = np.random.default_rng(4)
    popularity = random.random(ITEMS)
    cases = []
    for user in range(40):
        rows = random.permutation(ITEMS)
        past = rows[: random.integers(0, 40)].tolist()
        # Seen goes further back than the history does.
        cases.append(case(past[-8:], int(rows[-1]), f"u{user}", seen=past))
    model = TorchModel(backbone, "b-1", None, least_beams=ITEMS)

    ranks = model_ranks(model, cases, index, popularity, batch_size=batch_size)

    expected = [brute_force(backbone, index, popularity, one) for one in cases]
    assert ranks.tolist() == expected
    assert 5 < np.count_nonzero(expected) < 35  # some targets on the list, some beyond it


def test_items_that_share_a_semantic_id_are_ranked_by_popularity() -> None:
    index = CatalogueIndex(tuple(IndexedItem(str(i), str(i), (), True, (1, 2, 3, 4)) for i in range(3)), 1, "b-1")
    model = TorchModel(tiny_backbone(), "b-1", None, least_beams=5)
    cases = [case([0], 1), case([0], 2), case([], 0, seen=[])]

    ranks = model_ranks(model, cases, index, np.array([0.1, 0.5, 0.9]))

    assert ranks.tolist() == [2, 1, 3]


def test_a_target_that_cannot_be_shown_has_no_rank() -> None:
    index = catalogue()
    model = TorchModel(tiny_backbone(), "b-1", None, least_beams=ITEMS)
    unavailable, without_codes = case([0, 1], 6), case([0, 1], 10)

    assert model_ranks(model, [unavailable, without_codes], index, np.zeros(ITEMS)).tolist() == [0, 0]


def test_no_cases_have_no_ranks() -> None:
    model = TorchModel(tiny_backbone(), "b-1", None, least_beams=5)

    assert model_ranks(model, [], catalogue(), np.zeros(ITEMS)).tolist() == []
    assert popularity_ranks([], catalogue(), np.zeros(ITEMS)).dtype == np.int64


def test_popularity_ranks_by_pencil() -> None:
    index = catalogue()  # rows 6 and 13 are unavailable, row 10 has no codes but can be popular
    popularity = np.arange(ITEMS, 0, -1).astype(np.float64)

    ranks = popularity_ranks(
        [case([], 0), case([0, 1, 2], 3), case([0, 1], 7), case([], 6), case([], 10), case([0], 11), case([5], 50)],
        index,
        popularity,
    )

    # Before row 7 lie 2, 3, 4, 5; before row 10 nine others; before row 11, without row 0, also nine.
    assert ranks.tolist() == [1, 1, 5, 0, 10, 10, 0]


@pytest.mark.parametrize("distinct", [2, 40])
def test_popularity_ranks_are_those_of_the_list_that_the_service_would_give(distinct: int) -> None:
    index, random = catalogue(), np.random.default_rng(distinct)
    popularity = random.integers(0, distinct, ITEMS) / distinct  # few values: ties
    cases = []
    for number in range(200):
        order = random.permutation(ITEMS)
        most = int(random.integers(0, ITEMS - 1))
        cases.append(case([], int(order[-1]), user=f"u{number}", seen=order[:most].tolist()))

    wanted = []
    for own in cases:
        rows = rank_popular(popularity, index.available, own.seen, 10).rows.tolist()
        wanted.append(rows.index(own.target) + 1 if own.target in rows else 0)

    assert popularity_ranks(cases, index, popularity).tolist() == wanted
    assert 0 < sum(rank > 0 for rank in wanted) < len(wanted)


def test_the_validation_loss_is_minus_the_mean_score_of_the_targets() -> None:
    backbone, index = tiny_backbone(), catalogue()
    cases = [case([0, 1, 2], 3), case([], 4), case([5] * 20, 7), case([8, 9], 0)]

    scores = [score_items(backbone, index.codes[c.history], index.codes[[c.target]])[0] for c in cases]

    for batch_size in (1, 3, 128):
        assert validation_loss(backbone, cases, index.codes, batch_size=batch_size) == pytest.approx(
            -np.mean(scores), abs=1e-4
        )
    assert validation_loss(backbone, [], index.codes) == 0


def test_a_users_ndcg_is_the_mean_over_their_cases_in_order_of_their_ids() -> None:
    cases = [case([0], 1, "b"), case([0], 1, "a"), case([0], 1, "b")]

    found = user_ndcg(np.array([1, 3, 0]), cases)

    np.testing.assert_allclose(found, [0.5, 0.5])  # a: 1 / log2(4); b: (1 + 0) / 2


def test_new_users_and_new_items_are_measured_apart_by_pencil() -> None:
    nothing = np.empty(0, dtype=np.int64)
    popularity = np.array([1.0, 0.0, 0.25])  # nobody had taken item 1
    cases = [
        Case(user, nothing, target, nothing, earlier)
        for user, target, earlier in [("a", 0, 0), ("b", 1, 7), ("c", 2, 3), ("d", 1, 0)]
    ]

    found = cold_and_known(
        {"candidate": np.array([1, 0, 3, 8]), "base": np.zeros(4, dtype=np.int64)}, cases, popularity
    )

    assert found["new_users"]["candidate"] == metrics(np.array([1, 8]))
    assert found["known_users"]["candidate"] == metrics(np.array([0, 3]))
    assert found["new_items"]["candidate"] == metrics(np.array([0, 8]))
    assert found["known_items"]["candidate"] == metrics(np.array([1, 3]))
    assert {own["base"].hit_10 for own in found.values()} == {0.0}
    assert [found[name]["base"].users for name in ("new_users", "known_users", "new_items", "known_items")] == [2] * 4


def test_without_cases_every_group_is_empty() -> None:
    found = cold_and_known({"base": np.empty(0, dtype=np.int64)}, [], np.array([1.0]))
    assert {own["base"].users for own in found.values()} == {0}
