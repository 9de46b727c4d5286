"""The passes written out for Llama against those of transformers, and both against the referee."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from service.catalog.trie import LEVELS, build_trie
from service.generation import beam
from service.generation.backbone import Backbone
from service.generation.engine import GenerationRequest
from service.generation.llama import LlamaPasses, pack
from service.generation.passes import GeneralPasses, Passes, open_passes
from service.generation.prompt import VOCABULARY
from service.generation.reference import score_items
from service.generation.torch_engine import TorchModel
from tests.models import tiny_backbone

SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
LENGTHS = torch.tensor([9, 1, 5])
torch.manual_seed(0)  # models made below: two items that score alike would rank either way


def llama(**changes: object) -> Backbone:
    return ready(LlamaForCausalLM(LlamaConfig(**SIZES | {"num_attention_heads": 4} | changes)))  # type: ignore[arg-type]


def ready(model: PreTrainedModel) -> Backbone:
    """Frozen, with weights large enough that no two items score alike."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        spread = 0.3 if parameter.ndim == 2 else 0.1
        parameter.data = parameter.data + spread * torch.randn(parameter.shape, generator=generator)
    model.requires_grad_(False)
    return Backbone(model.train(False))


def run(passes: Passes) -> list[torch.Tensor]:
    """A prefill of three prompts of unlike length, two steps of two beams each."""
    generator = torch.Generator().manual_seed(2)
    prompts = torch.randint(0, VOCABULARY, (3, 9), generator=generator)
    visible = (torch.arange(9) < LENGTHS[:, None])[:, None].expand(-1, 2, -1)
    found = [passes.prefill(prompts, LENGTHS)]
    own = torch.eye(2, dtype=torch.bool).expand(3, -1, -1)
    for depth in range(2):
        visible = torch.cat([visible, own], dim=2)
        tokens = torch.randint(0, VOCABULARY, (3, 2), generator=generator)
        found.append(passes.step(tokens, (LENGTHS + depth)[:, None].expand(-1, 2), visible))
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2},
        {"num_key_value_heads": 1, "head_dim": 16},
        {"tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
    ],
    ids=["plain", "grouped keys", "one key head of another size", "tied", "scaled positions"],
)
def test_the_passes_written_out_give_the_hidden_states_of_transformers(changes: dict[str, object]) -> None:
    backbone = llama(**changes)

    with torch.inference_mode():
        expected = run(GeneralPasses(backbone.decoder))
        passes = open_passes(backbone, pack(backbone.model), batch=3, capacity=13)
        found = run(passes)

    assert isinstance(passes, LlamaPasses)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_in_bfloat16_they_are_as_near_to_the_exact_passes_as_those_of_transformers() -> None:
    """Over sixteen models: of a single one, the roundings of either may happen to cancel."""
    ours, theirs = 0.0, 0.0  # squares of errors
    for seed in range(16):
        torch.manual_seed(seed)
        backbone = llama()
        backbone.model.to(torch.bfloat16)  # type: ignore[arg-type]  # transformers annotates it away
        exact = llama()
        exact.model.load_state_dict(backbone.model.state_dict())
        with torch.inference_mode():
            expected = torch.cat([hidden.flatten() for hidden in run(GeneralPasses(exact.decoder))])
            general = run(GeneralPasses(backbone.decoder))
            written_out = run(open_passes(backbone, pack(backbone.model), batch=3, capacity=13))
        assert all(hidden.dtype == torch.bfloat16 for hidden in written_out)
        theirs += float((torch.cat([hidden.flatten() for hidden in general]) - expected).square().sum())
        ours += float((torch.cat([hidden.flatten() for hidden in written_out]) - expected).square().sum())

    assert ours < theirs


def test_what_is_packed_are_the_weights_of_that_moment() -> None:
    backbone = llama()
    with torch.inference_mode():
        before = run(open_passes(backbone, pack(backbone.model), 3, 13))
    backbone.model.get_submodule("model.layers.1.mlp.up_proj").weight.data.mul_(2)

    with torch.inference_mode():
        after = run(open_passes(backbone, pack(backbone.model), 3, 13))

    assert not torch.allclose(before[0], after[0])


class Wrapped(nn.Linear):
    """Stands for a layer that computes more than its weight says."""


def with_wrapped_layer() -> Backbone:
    backbone = llama()
    backbone.model.get_submodule("model.layers.2.mlp").down_proj = Wrapped(48, 32)
    return backbone


@pytest.mark.parametrize(
    "backbone",
    [
        with_wrapped_layer(),
        llama(attention_bias=True),
        llama(hidden_act="gelu"),
        llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0}),
        ready(Qwen2ForCausalLM(Qwen2Config(**SIZES, num_attention_heads=4, num_key_value_heads=2))),
    ],
    ids=["wrapped layer", "biases", "another activation", "positions by length", "another architecture"],
)
def test_what_is_not_that_llama_goes_through_transformers(backbone: Backbone) -> None:
    assert pack(backbone.model) is None
    assert isinstance(open_passes(backbone, None, 1, 1), GeneralPasses)


@pytest.mark.parametrize(
    "backbone",
    [
        llama(num_key_value_heads=2),
        ready(Qwen2ForCausalLM(Qwen2Config(**SIZES, num_attention_heads=4, num_key_value_heads=2))),
        ready(GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, num_attention_heads=4))),
    ],
    ids=["llama", "qwen2", "gpt-neox"],
)
def test_any_architecture_returns_the_referees_ranking(backbone: Backbone) -> None:
    random = np.random.default_rng(4)
    trie = build_trie(random.integers(0, [12, 9, 7, 5], size=(200, LEVELS)).astype(np.int16))
    histories = [random.integers(0, 256, size=(n, LEVELS)).astype(np.int16) for n in (0, 6, 2)]
    nothing = np.empty(0, dtype=np.int64)

    found = TorchModel(backbone, "b", None, least_beams=1).generate(
        [GenerationRequest(history, trie.leaves, nothing) for history in histories], trie
    )

    for history, generated in zip(histories, found, strict=True):
        expected = score_items(backbone, history, trie.leaf_codes)
        np.testing.assert_array_equal(generated.leaves, np.argsort(-expected, kind="stable"))
        np.testing.assert_allclose(generated.scores, expected[generated.leaves], atol=1e-4)


def test_models_over_one_trie_share_its_tensors() -> None:
    trie = build_trie(np.array([[1, 2, 3, 4], [1, 2, 3, 5]], dtype=np.int16))
    device = tiny_backbone().device

    assert beam.trie_tensors(trie, device) is beam.trie_tensors(trie, device)
    assert beam.trie_tensors(build_trie(trie.leaf_codes), device) is not beam.trie_tensors(trie, device)
