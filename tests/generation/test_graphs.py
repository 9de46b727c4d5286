"""The search of fixed shapes, as a CUDA graph holds it, run uncaptured: against the referee and the eager search."""

import numpy as np
import pytest
import torch

from service.catalog.trie import Trie, build_trie
from service.generation import program
from service.generation.backbone import Backbone
from service.generation.blocks import Blocks
from service.generation.engine import GenerationRequest
from service.generation.graphs import Graphs, Sizes, sizes_for
from service.generation.prompt import FIRST_CODE_TOKEN, Prompt
from service.generation.reference import score_items
from service.generation.torch_engine import TorchEngine, TorchModel
from tests.generation.test_beam import random_catalogue, random_history
from tests.models import tiny_backbone

SIZES = Sizes(batches=(1, 4), histories=(2, 6), widths=(10,))
NOTHING = np.empty(0, dtype=np.int64)


def instructed(backbone: Backbone) -> Backbone:
    """With text before, between and behind the items, as pretrained backbones have it."""
    random = np.random.default_rng(8)
    before, between, after = (random.integers(3, 1000, n) for n in (12, 2, 3))
    return Backbone(backbone.model, Prompt("instruction", FIRST_CODE_TOKEN, before, between, after))


def captured(backbone: Backbone, sizes: Sizes = SIZES, *, share_prefix: bool = True) -> TorchModel:
    graphs = Graphs(backbone, sizes, Blocks(compiled=False), share_prefix=share_prefix)
    slot = graphs.take(backbone)
    assert slot is not None
    return TorchModel(backbone, "b", None, least_beams=sizes.widths[0], captured=(graphs, slot))


def requests_of(trie: Trie, drops: list[int], limit: int = 10) -> list[GenerationRequest]:
    random = np.random.default_rng(1)
    return [
        GenerationRequest(random_history(n % 7, seed=n), limit, np.sort(random.permutation(trie.leaves)[:drop]))
        for n, drop in enumerate(drops)
    ]


@pytest.mark.parametrize("text", [False, True], ids=["compact", "instruction"])
@pytest.mark.parametrize("share_prefix", [False, True])
def test_a_program_as_wide_as_the_catalogue_returns_the_referees_ranking(text: bool, share_prefix: bool) -> None:
    backbone = instructed(tiny_backbone()) if text else tiny_backbone()
    trie = build_trie(random_catalogue(300, seed=3))
    model = captured(backbone, Sizes((1,), (6,), (trie.leaves,)), share_prefix=share_prefix)
    for items in (0, 3, 6):
        past = random_history(items, seed=items)

        found = model.generate([GenerationRequest(past, trie.leaves, NOTHING)], trie)[0]

        expected = score_items(backbone, past, trie.leaf_codes)
        np.testing.assert_array_equal(np.sort(found.leaves), np.arange(trie.leaves))
        assert np.all(np.diff(expected[found.leaves]) <= 2e-4)  # the referee's order, up to ties within the tolerance
        np.testing.assert_allclose(found.scores, expected[found.leaves], atol=1e-4)


def test_a_program_and_the_eager_search_give_the_same_answers() -> None:
    backbone = instructed(tiny_backbone())
    trie = build_trie(random_catalogue(400, seed=9))
    requests = requests_of(trie, [0, 1, 40, 390, 399, 400, 7])  # more than the largest batch, some left with nothing

    ours = captured(backbone).generate(requests, trie)

    for found, eager in zip(ours, TorchModel(backbone, "b", None, 10).generate(requests, trie), strict=True):
        np.testing.assert_array_equal(found.leaves, eager.leaves)
        np.testing.assert_allclose(found.scores, eager.scores, atol=1e-4)


def test_a_choice_and_a_penalty_are_searched_beside_the_programs() -> None:
    backbone = tiny_backbone()
    trie = build_trie(random_catalogue(400, seed=9))
    past, within = random_history(2, seed=1), np.arange(5, 300, 7, dtype=np.int64)
    requests = [
        GenerationRequest(past, 10, NOTHING),
        GenerationRequest(past, 10, NOTHING, within),
        GenerationRequest(past, 10, NOTHING, None, 0.7),
    ]

    ours = captured(backbone).generate(requests, trie)

    for found, eager in zip(ours, TorchModel(backbone, "b", None, 10).generate(requests, trie), strict=True):
        np.testing.assert_array_equal(found.leaves, eager.leaves)
        np.testing.assert_allclose(found.scores, eager.scores, atol=1e-4)
    assert set(ours[1].leaves.tolist()) <= set(within.tolist())


def test_requests_that_no_bucket_holds_are_searched_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.generation.graphs.EXCLUSIONS", 64)
    backbone = tiny_backbone()
    trie = build_trie(random_catalogue(400, seed=9))
    requests = [
        GenerationRequest(random_history(2, seed=1), 10, np.arange(65)),  # more exclusions
        GenerationRequest(random_history(2, seed=1), 10, np.arange(64)),
        GenerationRequest(random_history(20, seed=2), 10, NOTHING),  # a longer prompt
        GenerationRequest(random_history(2, seed=3), 25, NOTHING),  # more beams
    ]
    model = captured(backbone)

    ours = model.generate(requests, trie)

    for found, eager in zip(ours, TorchModel(backbone, "b", None, 10).generate(requests, trie), strict=True):
        np.testing.assert_array_equal(found.leaves, eager.leaves)


def test_a_changed_trie_is_searched_by_the_same_programs_until_it_outgrows_its_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.generation.graphs.NODES", 256)
    backbone = tiny_backbone()
    graphs = Graphs(backbone, SIZES, Blocks(compiled=False))
    slot = graphs.take(backbone)
    assert slot is not None
    model = TorchModel(backbone, "b", None, 10, (graphs, slot))
    eager = TorchModel(backbone, "b", None, 10)
    held = dict(slot.programs)
    for items, same in [(200, True), (50, True), (210, True), (0, True), (900, False), (60, False)]:
        trie = build_trie(random_catalogue(items, seed=items))
        requests = requests_of(trie, [0, min(items, 5)])

        for found, expected in zip(model.generate(requests, trie), eager.generate(requests, trie), strict=True):
            np.testing.assert_array_equal(found.leaves, expected.leaves)

        assert all(slot.programs.get(bucket) is program for bucket, program in held.items()) is same


def test_a_swap_takes_the_free_slot_and_no_answer_changes_until_its_model_is_asked() -> None:
    backbone = instructed(tiny_backbone())
    graphs = Graphs(backbone, SIZES, Blocks(compiled=False))
    trie = build_trie(random_catalogue(400, seed=9))
    request = requests_of(trie, [3])
    programs = []
    before = None
    for seed in range(4):
        other = adapted(backbone, seed)
        slot = graphs.take(other)
        assert slot is not None
        model = TorchModel(backbone, "b", str(seed), 10, (graphs, slot))
        expected = TorchModel(other, "b", None, 10).generate(request, trie)[0]

        found = model.generate(request, trie)[0]

        np.testing.assert_array_equal(found.leaves, expected.leaves)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
        if before is not None:  # drains
            np.testing.assert_array_equal(before[0].generate(request, trie)[0].leaves, before[1].leaves)
            before[0].close()
        before = model, expected
        programs.append(list(slot.programs.values()))
    assert programs[0] == programs[2]
    assert programs[1] == programs[3]


def adapted(backbone: Backbone, seed: int) -> Backbone:
    """Other weights in the blocks; embedding, norm and head are the backbone's."""
    other = tiny_backbone(seed + 10).model
    for name, parameter in backbone.model.named_parameters():
        if "layers" not in name:
            module, _, leaf = name.rpartition(".")
            setattr(other.get_submodule(module), leaf, parameter)
    other.get_submodule("lm_head").weight = backbone.model.get_submodule("lm_head").weight
    return Backbone(other, backbone.prompt)


def test_in_bfloat16_scores_stay_near_the_exact_ones() -> None:
    backbone = instructed(tiny_backbone(hidden=64))
    backbone.model.to(torch.bfloat16)  # type: ignore[arg-type]  # transformers annotates it away
    exact = instructed(tiny_backbone(hidden=64))
    exact.model.load_state_dict(backbone.model.state_dict())
    trie = build_trie(random_catalogue(200, seed=2))
    model = captured(backbone, Sizes((2,), (6,), (trie.leaves,)))
    past = random_history(5, seed=5)

    found = model.generate([GenerationRequest(past, trie.leaves, NOTHING)], trie)[0]

    expected = score_items(exact, past, trie.leaf_codes)[found.leaves]
    assert np.linalg.norm(found.scores - expected) / np.linalg.norm(expected) < 2e-2


@pytest.mark.parametrize(
    ("requests", "batches"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (32, (1, 2, 4, 8, 16, 32))]
)
def test_what_is_captured_reaches_to_the_largest_batch(requests: int, batches: tuple[int, ...]) -> None:
    assert sizes_for(requests, 20, 10) == Sizes(batches, (10, 20), (10,))


def test_excluded_nodes_are_listed_by_depth_and_request() -> None:
    trie = build_trie(np.array([[1, 1, 1, 1], [1, 1, 1, 2], [1, 2, 1, 1], [2, 1, 1, 1]], dtype=np.int16))
    out = np.zeros((4, 3, 2), dtype=np.int32)

    program.dead_lists(trie, [np.array([0, 1]), NOTHING, np.array([3])], out)

    no = program.NEVER
    assert out[0].tolist() == [[no, no], [no, no], [1, no]]
    assert out[1].tolist() == [[0, no], [no, no], [2, no]]
    assert out[3].tolist() == [[0, 1], [no, no], [3, no]]


def test_an_engine_with_captured_searches_says_that_swaps_need_both_its_slots() -> None:
    """On a GPU the engine makes them itself; here they are put in, uncaptured."""
    backbone = tiny_backbone()
    engine = TorchEngine(device="cpu", dtype="float32", beams=10)
    assert engine.no_second is None
    engine._base = ("b", backbone, None)
    assert engine.no_second is None
    engine._base = ("b", backbone, Graphs(backbone, SIZES, Blocks(compiled=False)))
    assert "two slots" in (engine.no_second or "")


def test_a_load_that_fails_leaves_its_slot_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    graphs = Graphs(backbone, SIZES, Blocks(compiled=False))
    graphs.take(backbone)
    made = len(graphs._slots)

    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr("service.generation.graphs.pack_into", no_memory)
        with pytest.raises(torch.OutOfMemoryError):
            graphs.take(backbone)
    graphs.take(backbone)

    assert len(graphs._slots) == made
