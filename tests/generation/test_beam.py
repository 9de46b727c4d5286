"""The search against the referee: a brute-force scorer over the whole catalogue."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.catalog.trie import Trie, build_trie
from service.generation.backbone import Backbone
from service.generation.engine import Generated, GenerationRequest
from service.generation.reference import score_items
from service.generation.torch_engine import TorchModel
from tests.models import tiny_backbone

NOTHING = np.empty(0, dtype=np.int64)


def random_catalogue(items: int, seed: int) -> np.ndarray:
    """Codes that share prefixes at every level: int16 [items, 4]."""
    random = np.random.default_rng(seed)
    return random.integers(0, [12, 9, 7, 5], size=(items, 4)).astype(np.int16)


def random_history(items: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(items, 4)).astype(np.int16)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


def ask(model: TorchModel, trie: Trie, history: np.ndarray, limit: int, excluded: np.ndarray = NOTHING) -> Generated:
    return model.generate([GenerationRequest(history, limit, excluded)], trie)[0]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("items", [1, 3, 300, 2000])
@pytest.mark.parametrize("history", [0, 1, 20])
def test_a_beam_as_wide_as_the_catalogue_returns_the_referees_ranking(items: int, history: int, tied: bool) -> None:
    backbone = tiny_backbone(tied=tied)
    trie = build_trie(random_catalogue(items, seed=items))
    past = random_history(history, seed=1)

    found = ask(TorchModel(backbone, "b", None, least_beams=1), trie, past, limit=trie.leaves)

    expected = score_items(backbone, past, trie.leaf_codes)
    assert len(found.leaves) == trie.leaves
    np.testing.assert_array_equal(np.sort(found.leaves), np.arange(trie.leaves))
    np.testing.assert_allclose(found.scores, expected[found.leaves], atol=1e-4)
    assert np.all(np.diff(expected[found.leaves]) <= 2e-4)  # the referee's order, up to ties within the tolerance


def test_excluded_leaves_never_come_back_and_the_rest_keeps_its_order(backbone: Backbone) -> None:
    trie = build_trie(random_catalogue(300, seed=5))
    model = TorchModel(backbone, "b", None, least_beams=1)
    past = random_history(7, seed=2)
    everything = ask(model, trie, past, trie.leaves)
    excluded = everything.leaves[::2]

    found = ask(model, trie, past, trie.leaves, np.sort(excluded))

    np.testing.assert_array_equal(found.leaves, everything.leaves[1::2])


@settings(max_examples=60, deadline=None)
@given(
    items=st.integers(1, 60),
    limit=st.integers(1, 70),
    seed=st.integers(0, 10_000),
    share=st.floats(0, 1),
    beams=st.integers(1, 12),
)
def test_k_valid_results_come_back_whenever_k_are_left(
    backbone: Backbone, items: int, limit: int, seed: int, share: float, beams: int
) -> None:
    trie = build_trie(random_catalogue(items, seed))
    random = np.random.default_rng(seed)
    excluded = np.flatnonzero(random.random(trie.leaves) < share).astype(np.int64)

    found = ask(TorchModel(backbone, "b", None, beams), trie, random_history(3, seed), limit, excluded)

    assert len(found.leaves) == min(limit, trie.leaves - len(excluded))
    assert len(set(found.leaves.tolist())) == len(found.leaves)
    assert not set(found.leaves.tolist()) & set(excluded.tolist())
    assert np.all(np.diff(found.scores) <= 0)


def test_an_answer_does_not_depend_on_who_shares_its_batch(backbone: Backbone) -> None:
    trie = build_trie(random_catalogue(400, seed=9))
    model = TorchModel(backbone, "b", None, least_beams=10)
    requests = [
        GenerationRequest(random_history(n, seed=n), limit, np.arange(drop, dtype=np.int64))
        for n, limit, drop in [(0, 10, 0), (20, 5, 40), (3, 25, 0), (11, 10, 377)]
    ]

    together = model.generate(requests, trie)

    for request, found in zip(requests, together, strict=True):
        alone = model.generate([request], trie)[0]
        np.testing.assert_array_equal(found.leaves, alone.leaves)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)


def test_an_empty_catalogue_and_a_wholly_excluded_one_give_an_empty_list(backbone: Backbone) -> None:
    model = TorchModel(backbone, "b", None, least_beams=10)
    empty = build_trie(np.empty((0, 4), dtype=np.int16))
    full = build_trie(random_catalogue(20, seed=3))

    assert len(ask(model, empty, random_history(2, 1), 10).leaves) == 0
    assert len(ask(model, full, random_history(2, 1), 10, np.arange(full.leaves)).leaves) == 0


def test_a_choice_of_leaves_is_ranked_as_the_referee_ranks_it(backbone: Backbone) -> None:
    trie = build_trie(random_catalogue(300, seed=5))
    past = random_history(7, seed=2)
    within = np.arange(3, trie.leaves, 17, dtype=np.int64)
    excluded = within[::3]
    model = TorchModel(backbone, "b", None, least_beams=4)

    found = model.generate([GenerationRequest(past, trie.leaves, excluded, within)], trie)[0]

    left = np.setdiff1d(within, excluded)
    expected = score_items(backbone, past, trie.leaf_codes[left])
    np.testing.assert_array_equal(found.leaves, left[np.argsort(-expected)])
    np.testing.assert_allclose(found.scores, np.sort(expected)[::-1], atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    items=st.integers(1, 60),
    limit=st.integers(1, 70),
    seed=st.integers(0, 10_000),
    share=st.floats(0, 1),
    wanted=st.floats(0, 1),
    beams=st.integers(1, 12),
    penalty=st.sampled_from([0.0, 0.7]),
)
def test_k_of_a_choice_come_back_whenever_k_are_left(
    backbone: Backbone, items: int, limit: int, seed: int, share: float, wanted: float, beams: int, penalty: float
) -> None:
    trie = build_trie(random_catalogue(items, seed))
    random = np.random.default_rng(seed)
    excluded = np.flatnonzero(random.random(trie.leaves) < share).astype(np.int64)
    within = np.flatnonzero(random.random(trie.leaves) < wanted).astype(np.int64)
    model = TorchModel(backbone, "b", None, beams)
    plain = GenerationRequest(random_history(2, seed), limit, excluded)

    found, other = model.generate(
        [GenerationRequest(random_history(3, seed), limit, excluded, within, penalty), plain], trie
    )

    left = set(within.tolist()) - set(excluded.tolist())
    assert len(found.leaves) == min(limit, len(left))
    assert len(set(found.leaves.tolist())) == len(found.leaves)
    assert set(found.leaves.tolist()) <= left
    assert len(other.leaves) == min(limit, trie.leaves - len(excluded))  # who shares the batch is not held to it


@pytest.mark.parametrize("penalty", [0.3, 2.0, 1e6])
@pytest.mark.parametrize("chosen", [False, True])
def test_a_penalty_orders_by_score_less_what_is_better_with_the_same_first_code(
    backbone: Backbone, penalty: float, chosen: bool
) -> None:
    trie = build_trie(random_catalogue(400, seed=9))
    past = random_history(5, seed=3)
    within = np.arange(0, trie.leaves, 3, dtype=np.int64) if chosen else None
    request = GenerationRequest(past, trie.leaves, NOTHING, within, penalty)

    found = TorchModel(backbone, "b", None, least_beams=1).generate([request], trie)[0]

    left = np.arange(trie.leaves) if within is None else within
    scores = dict(zip(left.tolist(), score_items(backbone, past, trie.leaf_codes[left]).tolist(), strict=True))
    kind = dict(enumerate(trie.leaf_codes[:, 0].tolist()))
    better = {
        leaf: sum(scores[other] > own for other in scores if kind[other] == kind[leaf]) for leaf, own in scores.items()
    }
    expected = sorted(scores, key=lambda leaf: -(scores[leaf] - penalty * better[leaf]))
    assert found.leaves.tolist() == expected
    np.testing.assert_allclose(found.scores, [scores[leaf] for leaf in expected], atol=1e-4)


def test_a_search_without_choice_or_penalty_is_the_same_bit_for_bit(backbone: Backbone) -> None:
    trie = build_trie(random_catalogue(400, seed=9))
    model = TorchModel(backbone, "b", None, least_beams=10)
    plain, spread = (GenerationRequest(random_history(5, seed=3), 10, NOTHING, None, p) for p in (0.0, 2.0))

    alone = model.generate([plain], trie)[0]
    beside = model.generate([spread, plain], trie)[1]

    np.testing.assert_array_equal(alone.leaves, beside.leaves)
    np.testing.assert_array_equal(alone.scores, beside.scores)
