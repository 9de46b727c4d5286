"""vLLM itself, on a CPU: the referee's ranking, adapters swapped and refused; over 300 lines: one engine serves all."""

import weakref
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from service.adapters.artifacts import VerifiedAdapter, VerifiedBase
from service.catalog.trie import CODES, LEVELS, Trie, build_trie
from service.errors import ArtifactError, ConfigurationError
from service.generation.engine import Generated, GenerationRequest, ServedModel
from service.generation.reference import score_items
from service.generation.select import require_vllm
from service.generation.torch_engine import TorchEngine
from service.generation.vllm_base import VllmOptions
from service.generation.vllm_engine import VllmEngine, VllmModel
from service.settings import Device
from tests.vllm.published import Published, codes, history, instruction, llama, merged

NOTHING = np.empty(0, dtype=np.int64)
OPTIONS = VllmOptions("cpu", "float32", history_items=20, threads=1, kv_cache_gib=0.25, max_lora_rank=8)
BEAMS = 10


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def base(published: Published) -> VerifiedBase:
    return published.base(llama(seed=0))


@pytest.fixture(scope="module")
def adapters(published: Published, base: VerifiedBase) -> tuple[VerifiedAdapter, VerifiedAdapter]:
    return published.adapter(base, seed=1), published.adapter(base, seed=2)


@pytest.fixture(scope="module")
def engine() -> VllmEngine:
    return VllmEngine(OPTIONS, beams=BEAMS)


@pytest.fixture(scope="module")
def model(
    engine: VllmEngine, base: VerifiedBase, adapters: tuple[VerifiedAdapter, VerifiedAdapter]
) -> Iterator[VllmModel]:
    served = engine.load(base, adapters[0])
    yield served
    served.close()


def ask(model: ServedModel, trie: Trie, past: np.ndarray, limit: int, excluded: np.ndarray = NOTHING) -> Generated:
    return model.generate([GenerationRequest(past, limit, excluded)], trie)[0]


def same(ours: Generated, theirs: Generated) -> None:
    np.testing.assert_array_equal(ours.leaves, theirs.leaves)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)


@pytest.mark.parametrize("with_adapter", [True, False])
def test_a_beam_as_wide_as_the_catalogue_returns_the_referees_ranking(
    engine: VllmEngine, base: VerifiedBase, adapters: tuple[VerifiedAdapter, VerifiedAdapter], with_adapter: bool
) -> None:
    adapter = adapters[0] if with_adapter else None
    served, backbone = engine.load(base, adapter), merged(base, adapter)
    assert (served.base_id, served.adapter_version) == (base.base_id, adapter.version if adapter else None)
    trie = build_trie(codes(300, seed=3))
    pasts = [history(n, seed=n) for n in (0, 1, 20)]

    answers = served.generate([GenerationRequest(past, trie.leaves, NOTHING) for past in pasts], trie)
    served.close()

    for past, found in zip(pasts, answers, strict=True):
        expected = score_items(backbone, past, trie.leaf_codes)
        np.testing.assert_array_equal(np.sort(found.leaves), np.arange(trie.leaves))
        np.testing.assert_allclose(found.scores, expected[found.leaves], atol=1e-4)
        assert np.all(np.diff(expected[found.leaves]) <= 2e-4)  # the referee's order, up to ties within the tolerance


def test_it_answers_as_the_torch_engine_does(
    model: VllmModel, base: VerifiedBase, adapters: tuple[VerifiedAdapter, VerifiedAdapter]
) -> None:
    torch_engine = TorchEngine(device="cpu", dtype="float32", beams=BEAMS, threads=0)
    theirs = torch_engine.load(base, adapters[0])
    trie = build_trie(codes(2000, seed=4, most=(30, 30, 30, 10)))
    random = np.random.default_rng(5)
    requests = [
        GenerationRequest(history(n, seed=n), limit, np.flatnonzero(random.random(trie.leaves) < share))
        for n, limit, share in [(0, 10, 0), (1, 3, 0.5), (20, 10, 0), (20, 25, 0.9), (7, 10, 0.99), (13, 10, 0.3)]
    ]

    ours = model.generate(requests, trie)

    for request, found, expected in zip(requests, ours, theirs.generate(requests, trie), strict=True):
        same(found, expected)
        assert len(found.leaves) == min(request.limit, trie.leaves - len(request.excluded))
        assert not set(found.leaves.tolist()) & set(request.excluded.tolist())
        assert found.scores.dtype == np.float32


def test_k_valid_results_come_back_whenever_k_are_left(model: VllmModel) -> None:
    random = np.random.default_rng(6)
    for items, limit, share in [(1, 1, 0), (1, 3, 1), (40, 10, 0.8), (40, 50, 0.3), (60, 7, 0.95), (3, 12, 0)]:
        trie = build_trie(codes(items, seed=items))
        excluded = np.flatnonzero(random.random(trie.leaves) < share)

        found = ask(model, trie, history(3, seed=items), limit, excluded)

        assert len(found.leaves) == min(limit, trie.leaves - len(excluded))
        assert len(set(found.leaves.tolist())) == len(found.leaves)
        assert not set(found.leaves.tolist()) & set(excluded.tolist())
        assert np.all(np.diff(found.scores) <= 0)


def test_a_choice_of_leaves_and_a_penalty_are_searched_as_the_torch_engine_does(
    model: VllmModel, base: VerifiedBase, adapters: tuple[VerifiedAdapter, VerifiedAdapter]
) -> None:
    trie = build_trie(codes(120, seed=6))
    torch_model = TorchEngine(device="cpu", dtype="float32", beams=BEAMS, threads=0).load(base, adapters[0])
    within, everything = np.arange(1, trie.leaves, 5, dtype=np.int64), trie.leaves
    for request in (
        GenerationRequest(history(3, seed=4), everything, within[::4], within),
        GenerationRequest(history(3, seed=4), everything, NOTHING, None, 0.7),
        GenerationRequest(history(3, seed=4), everything, NOTHING, within, 1e6),
    ):
        ours, theirs = (m.generate([request], trie)[0] for m in (model, torch_model))
        assert sorted(ours.leaves.tolist()) == sorted(theirs.leaves.tolist())
        same(ours, theirs)


def test_an_empty_catalogue_and_a_wholly_excluded_one_give_an_empty_list(model: VllmModel) -> None:
    full = build_trie(codes(20, seed=3))
    assert len(ask(model, build_trie(np.empty((0, 4), dtype=np.int16)), history(2, 1), 10).leaves) == 0
    assert len(ask(model, full, history(2, 1), 10, np.arange(full.leaves)).leaves) == 0
    assert model.generate([], full) == []


def test_an_answer_does_not_depend_on_who_shares_its_batch(model: VllmModel) -> None:
    trie = build_trie(codes(400, seed=9))
    requests = [
        GenerationRequest(history(n, seed=n), limit, np.arange(drop, dtype=np.int64))
        for n, limit, drop in [(0, 10, 0), (20, 5, 40), (3, 25, 0), (11, 10, 300)]
    ]
    for request, found in zip(requests, model.generate(requests, trie), strict=True):
        same(found, model.generate([request], trie)[0])


@pytest.mark.parametrize("level", range(LEVELS))
def test_a_levels_scores_are_the_log_softmax_over_that_level(model: VllmModel, level: int) -> None:
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input

    assert model._loaded is not None
    llm, prompt = model._base, model._base.prompt.encode(history(5, seed=8)).tolist()
    first = int(llm.prompt.offsets[level])
    whole = np.empty(CODES, dtype=np.float64)  # over the whole vocabulary, with no token forbidden
    for half in (0, 128):
        wanted = list(range(first + half, first + half + 128))
        params = SamplingParams(
            temperature=0, max_tokens=1, logprob_token_ids=wanted, flat_logprobs=True, detokenize=False, ignore_eos=True
        )
        llm._engine.add_request(f"whole-{half}", tokens_input(prompt), params, lora_request=model._loaded.request)
        (output,) = [output for output in llm._engine.step() if output.finished]
        found = output.outputs[0].logprobs
        values = dict(zip(found.token_ids, found.logprobs, strict=True))
        whole[half : half + 128] = [values[token] for token in wanted]
    expected = torch.log_softmax(torch.from_numpy(whole), dim=-1).numpy()

    scores = llm.level_scores([prompt], level, model._loaded)[0]

    assert whole.max() < expected.max()  # they are not the same numbers: the rest of the vocabulary has its share
    np.testing.assert_allclose(scores, expected, atol=1e-6, rtol=1e-6)
    assert abs(np.exp(scores.astype(np.float64)).sum() - 1) < 1e-6


def test_beams_read_what_they_share_from_the_prefix_cache(model: VllmModel) -> None:
    from vllm.inputs.engine import tokens_input

    llm, prompt = model._base, model._base.prompt.encode(history(20, seed=77)).tolist()
    cached = []
    for turn in range(2):
        llm._engine.add_request(f"turn-{turn}", tokens_input(prompt), llm._params[0])
        (output,) = [output for output in llm._engine.step() if output.finished]
        cached.append(output.num_cached_tokens)
    assert cached == [0, 64]  # 81 tokens: two whole blocks of 32


def test_adapters_are_swapped_with_nothing_stale_left(
    engine: VllmEngine, base: VerifiedBase, adapters: tuple[VerifiedAdapter, VerifiedAdapter]
) -> None:
    trie, past = build_trie(codes(300, seed=10)), history(20, seed=11)
    loaded, folders, numbers, held = [], [], [], []
    for adapter in (adapters[0], adapters[1], adapters[0], None, adapters[1]):
        served = engine.load(base, adapter)
        found = ask(served, trie, past, trie.leaves)
        for before in loaded:
            before.close()  # only once the next one serves, as the service does
        loaded = [served]
        expected = score_items(merged(base, adapter), past, trie.leaf_codes)
        np.testing.assert_allclose(found.scores, expected[found.leaves], atol=1e-4)
        if served._loaded is not None:
            folders.append(served._loaded.folder)
            numbers.append((served._loaded.request.lora_name, served._loaded.request.lora_int_id))
        held.append(len(served._base._engine.list_loras()))
    loaded[0].close()

    assert len(set(folders)) == len(folders) == 4
    assert len({name for name, _ in numbers}) == len({number for _, number in numbers}) == 4
    assert not any(folder.exists() for folder in folders)
    assert held[1:] == [held[0]] * 2 + [held[0] - 1, held[0]]  # what has drained is gone


def hostile(adapter: VerifiedAdapter, name: str) -> VerifiedAdapter:
    """An adapter that somehow passed verification and does not fit."""
    tensors, config = dict(adapter.tensors), dict(adapter.config)
    some = sorted(tensors)[0]
    match name:
        case "too small":
            tensors[some] = tensors[some][:, :-1]
        case "too large":
            tensors = {key: np.pad(tensor, ((0, 0), (0, 8))) for key, tensor in tensors.items()}
        case "half missing":
            del tensors[some]
        case "unknown layer":
            tensors[some.replace("layers.0", "layers.7")] = tensors[some]
        case "rank above the reserved":
            config["r"] = 16
        case "scale that is no number":
            config["lora_alpha"] = "large"
    return replace(adapter, tensors=tensors, config=config)


@pytest.mark.parametrize(
    "name",
    ["too small", "too large", "half missing", "unknown layer", "rank above the reserved", "scale that is no number"],
)
def test_a_hostile_adapter_is_refused_while_the_old_one_serves(
    engine: VllmEngine,
    model: VllmModel,
    base: VerifiedBase,
    adapters: tuple[VerifiedAdapter, VerifiedAdapter],
    name: str,
) -> None:
    trie, past = build_trie(codes(300, seed=12)), history(9, seed=13)
    before, held = ask(model, trie, past, 10), model._base._engine.list_loras()

    with pytest.raises(ArtifactError, match=adapters[1].version):
        engine.load(base, hostile(adapters[1], name))

    after = ask(model, trie, past, 10)
    np.testing.assert_array_equal(after.leaves, before.leaves)
    np.testing.assert_allclose(after.scores, before.scores, atol=1e-5)
    assert model._base._engine.list_loras() == held


def test_a_prompt_that_is_too_long_is_refused_and_the_next_is_answered(model: VllmModel) -> None:
    trie = build_trie(codes(50, seed=14))
    with pytest.raises(ValueError, match="too long"):
        model.generate([GenerationRequest(history(n, 1), 10, NOTHING) for n in (3, 21)], trie)
    assert len(ask(model, trie, history(20, 1), 10).leaves) == 10


def test_an_answer_that_fails_half_way_leaves_nothing_behind(model: VllmModel) -> None:
    trie, llm = build_trie(codes(50, seed=15)), model._base
    before = ask(model, trie, history(4, 1), 10)
    with pytest.raises(Exception, match=r"vocab|range|token"):  # a token id that the model does not have
        llm.level_scores([[1, 5, 9], [1, 10**9]], 0, None)
    assert not llm._engine.has_unfinished_requests()
    same(ask(model, trie, history(4, 1), 10), before)


def test_a_new_base_takes_over_and_the_old_one_is_freed(
    engine: VllmEngine, published: Published, base: VerifiedBase
) -> None:
    """The shape of SmolLM2's layers: 64 numbers a head, three query heads to each key head, text around the items."""
    other = published.base(llama(seed=7, hidden=192, heads=3, kv_heads=1, vocabulary=1524), instruction())
    adapter = published.adapter(other, seed=8)
    own = VllmEngine(OPTIONS, beams=BEAMS)
    trie, past = build_trie(codes(200, seed=16)), history(20, seed=17)
    old = own.load(base, None)
    before, old_engine = ask(old, trie, past, 10), weakref.ref(old._base._engine)

    new = own.load(other, adapter)

    same(ask(old, trie, past, 10), before)  # it serves until it is closed
    assert set(own._bases) == {base.base_id, other.base_id}
    old.close()
    assert set(own._bases) == {other.base_id}
    assert old_engine() is None  # and with it weights and cache
    found = ask(new, trie, past, trie.leaves)
    expected = score_items(merged(other, adapter), past, trie.leaf_codes)
    np.testing.assert_allclose(found.scores, expected[found.leaves], atol=1e-4)
    assert np.all(np.diff(expected[found.leaves]) <= 2e-4)
    new.close()


def test_a_base_without_the_semantic_ids_is_refused(engine: VllmEngine, published: Published) -> None:
    with pytest.raises(ArtifactError, match="no rows"):
        engine.load(published.base(llama(seed=1, vocabulary=600)), None)


def test_a_base_that_is_too_short_for_the_prompt_is_refused(published: Published, base: VerifiedBase) -> None:
    with pytest.raises(ArtifactError, match="vLLM refuses base"):
        VllmEngine(replace(OPTIONS, history_items=300), beams=BEAMS).load(base, None)


def test_a_device_that_the_package_was_not_built_for_is_said(base: VerifiedBase) -> None:
    require_vllm(Device.CPU)
    with pytest.raises(ConfigurationError, match="ADAPTIDE_DEVICE"):
        require_vllm(Device.CUDA)  # before the service starts, by the package's name
    with pytest.raises(ConfigurationError, match="ADAPTIDE_DEVICE"):
        VllmEngine(replace(OPTIONS, device="cuda", dtype="bfloat16"), beams=BEAMS).load(base, None)


def test_bfloat16_gives_the_same_scores_within_its_precision(published: Published, base: VerifiedBase) -> None:
    own = VllmEngine(replace(OPTIONS, dtype="bfloat16"), beams=BEAMS)
    adapter = published.adapter(base, seed=18)
    trie, past = build_trie(codes(100, seed=19)), history(20, seed=20)
    served = own.load(base, adapter)

    found = ask(served, trie, past, trie.leaves)
    served.close()

    expected = score_items(merged(base, adapter), past, trie.leaf_codes)
    assert np.abs(found.scores - expected[found.leaves]).mean() < 0.05 * expected.std() + 0.1
