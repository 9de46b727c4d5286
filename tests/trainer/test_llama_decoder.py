"""The written-out Llama blocks: the textbook formulas' hidden states and gradients in float64, and transformers' own.

transformers takes norms and softmax in float32 whatever the model's type, so it is the coarser of the two referees.
"""

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from service.generation.backbone import Backbone
from service.generation.prompt import PAD, VOCABULARY
from trainer.decoder import decode
from trainer.dropout import dropout, keep_mask
from trainer.examples import TrainingSequence
from trainer.fit import sequence_loss
from trainer.llama_decoder import decode_llama, decodes
from trainer.lora import LoraBackbone

CODES = np.random.default_rng(0).integers(0, 256, size=(30, 4)).astype(np.int16)


def llama(kv_heads: int = 4, dtype: torch.dtype = torch.float64, attention: str = "eager") -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        initializer_range=0.3,
        attn_implementation=attention,
    )
    model = LlamaForCausalLM(config).to(dtype)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def embedded(model: LlamaForCausalLM, length: int = 13) -> Tensor:
    tokens = torch.randint(0, VOCABULARY, (3, length), generator=torch.Generator().manual_seed(1))
    return model.get_input_embeddings()(tokens)  # type: ignore[no-any-return]


def textbook(model: LlamaForCausalLM, x: Tensor) -> Tensor:
    """Pre-norm blocks of rotary grouped-query attention and SwiGLU, one head at a time, by autograd."""
    own, config = model.model, model.config
    size = config.hidden_size // config.num_attention_heads
    groups = config.num_attention_heads // (config.num_key_value_heads or 1)
    angles = torch.arange(x.shape[1])[:, None] * 10_000.0 ** -(torch.arange(0, size, 2).double() / size)

    def norm(rows: Tensor, weight: Tensor) -> Tensor:
        return rows / (rows.square().mean(dim=-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight

    def turned(head: Tensor) -> Tensor:
        a, b = head.chunk(2, dim=-1)
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)

    for layer in own.layers:
        rows, attention, mlp = norm(x, layer.input_layernorm.weight), layer.self_attn, layer.mlp
        q, k, v = (
            (rows @ linear.weight.T).split(size, dim=-1)
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        heads = []
        for i, query in enumerate(q):
            scores = turned(query) @ turned(k[i // groups]).mT / size**0.5
            hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
            heads.append(scores.masked_fill(hidden, -torch.inf).softmax(dim=-1) @ v[i // groups])
        x = x + torch.cat(heads, dim=-1) @ attention.o_proj.weight.T
        rows = norm(x, layer.post_attention_layernorm.weight)
        gate = rows @ mlp.gate_proj.weight.T
        x = x + (gate * gate.sigmoid() * (rows @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T
    return norm(x, own.norm.weight)


def weighted_sum(hidden: Tensor) -> Tensor:
    """Every entry with another weight, so that no two gradients can stand for each other."""
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return (hidden * weights.to(hidden.dtype)).sum()


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_hidden_states_and_the_gradient_of_every_weight_are_the_textbooks(kv_heads: int) -> None:
    model = llama(kv_heads)
    assert isinstance(model.model, LlamaModel)
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq.double()
    expected = textbook(model, embedded(model))
    found = decode_llama(model.model, embedded(model), 0.0)
    of_transformers = model.model(inputs_embeds=embedded(model), use_cache=False).last_hidden_state

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, of_transformers, rtol=1e-3, atol=1e-3)
    parameters = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(weighted_sum(found), parameters),
        torch.autograd.grad(weighted_sum(expected), parameters),
        strict=True,
    ):
        assert (one - other).norm() < 1e-4 * other.norm()


def test_one_position_alone_is_enough() -> None:
    model = llama()
    assert isinstance(model.model, LlamaModel)
    expected = model.model(inputs_embeds=embedded(model, 1), use_cache=False).last_hidden_state

    torch.testing.assert_close(decode_llama(model.model, embedded(model, 1), 0.0), expected, rtol=1e-4, atol=1e-4)


def test_under_autocast_it_is_as_near_as_bfloat16_allows() -> None:
    model = llama(dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data.mul_(0.3)
    assert isinstance(model.model, LlamaModel)
    expected = model.model(inputs_embeds=embedded(model), use_cache=False).last_hidden_state
    with torch.autocast("cpu", torch.bfloat16):
        found = decode_llama(model.model, embedded(model), 0.0)

    assert found.dtype == torch.float32  # the residual stream
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    parameters = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(weighted_sum(found), parameters),
        torch.autograd.grad(weighted_sum(expected), parameters),
        strict=True,
    ):
        assert (one - other).norm() < 0.05 * other.norm()


def test_the_factors_of_an_adapter_get_the_gradients_that_the_layers_would_give_them() -> None:
    lora = LoraBackbone(Backbone(llama().requires_grad_(False)), rank=3, alpha=6, dropout=0.0, seed=0)
    for parameter in lora.parameters.values():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64)
    inputs = embedded(lora.backbone.model)  # type: ignore[arg-type]
    parameters = list(lora.parameters.values())
    assert decodes(lora.backbone.model)
    fast = torch.autograd.grad(weighted_sum(decode(lora.backbone, inputs)), parameters)
    layers = lora.backbone.decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state
    slow = torch.autograd.grad(weighted_sum(layers), parameters)

    for one, other in zip(fast, slow, strict=True):
        assert (one - other).norm() < 5e-3 * other.norm()


def test_an_observer_sees_what_the_layers_would_have_been_given() -> None:
    lora = LoraBackbone(Backbone(llama().requires_grad_(False)), rank=3, alpha=6, dropout=0.0, seed=0)
    seen: list[dict[str, Tensor]] = [{}, {}]
    inputs = embedded(lora.backbone.model).detach()  # type: ignore[arg-type]
    lora.backbone.model.train()
    lora.observe(lambda module, x: seen[0].update({module: x}), training_only=True)
    decode(lora.backbone, inputs)
    lora.observe(lambda module, x: seen[1].update({module: x.flatten(0, 1)}), training_only=True)
    lora.backbone.decoder(inputs_embeds=inputs, use_cache=False)
    lora.backbone.model.train(False)
    lora.observe(lambda module, x: pytest.fail("outside of training nobody looks on"), training_only=True)
    decode(lora.backbone, inputs)

    assert len(seen[0]) == 3 * 7
    for module, x in seen[0].items():
        torch.testing.assert_close(x, seen[1][module], rtol=1e-3, atol=1e-3)


def test_dropout_before_a_cannot_be_merged_and_goes_through_the_layers() -> None:
    lora = LoraBackbone(Backbone(llama().requires_grad_(False)), rank=3, alpha=6, dropout=0.1, seed=0)
    lora.backbone.model.train()
    assert not decodes(lora.backbone.model)
    lora.backbone.model.train(False)
    assert decodes(lora.backbone.model)


def test_a_users_targets_in_one_pass_have_the_gradients_of_separate_examples() -> None:
    lora = LoraBackbone(Backbone(llama().requires_grad_(False)), rank=3, alpha=6, dropout=0.0, seed=0)
    for parameter in lora.parameters.values():
        parameter.data = 0.3 * torch.randn(parameter.shape, dtype=torch.float64)
    parameters = list(lora.parameters.values())
    rows = np.arange(12, dtype=np.int64)
    together, count = sequence_loss(lora.backbone, [TrainingSequence(rows, 5)], CODES)
    losses = [
        sequence_loss(lora.backbone, [TrainingSequence(rows[: place + 1], place)], CODES)[0] for place in range(5, 12)
    ]
    apart = torch.stack(losses).mean()

    assert count == len(losses)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad(together, parameters), torch.autograd.grad(apart, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_residual_dropout_falls_on_every_block_and_only_while_training() -> None:
    backbone = Backbone(llama())
    inputs = embedded(llama()).detach()
    plain = decode(backbone, inputs)
    backbone.model.train()
    torch.manual_seed(0)
    first, second = decode(backbone, inputs, 0.5), decode(backbone, inputs, 0.5)

    assert not torch.allclose(first, plain)
    assert not torch.allclose(first, second)
    torch.manual_seed(0)
    assert torch.equal(decode(backbone, inputs, 0.5), first)
    backbone.model.train(False)
    assert torch.equal(decode(backbone, inputs, 0.5), plain)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.99])
def test_a_mask_drops_its_share_and_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    mask = keep_mask(torch.Size([400, 501]), rate, torch.float32, torch.device("cpu"))

    dropped = (mask == 0).float().mean().item()
    assert dropped == pytest.approx(rate, abs=0.004)
    assert mask.unique().tolist() == [0, pytest.approx(1 / (1 - round(256 * rate) / 256))]
    assert mask.mean().item() == pytest.approx(1, abs=0.05)
    columns = (mask == 0).float().mean(dim=0)
    assert float((columns - dropped).abs().max()) < 5 * (rate * (1 - rate) / 400) ** 0.5  # no byte is drawn unevenly


def test_without_a_rate_or_outside_of_training_nothing_is_dropped() -> None:
    x = torch.ones(4, 5)

    assert dropout(x, 0.0, training=True) is x
    assert dropout(x, 0.5, training=False) is x
    assert torch.isfinite(dropout(x, 1.0, training=True)).all()
