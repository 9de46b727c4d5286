"""The passes of one search through a Llama, written out for many short prompts.

What it does less of than the general forward: the cache is one block per layer that grows in place; attention is two
batched products and a softmax (torch's fused CPU kernel is two to six times slower with heads this small); after the
last layer's keys and values only the last position of each prompt is computed; residuals are added inside a product.
The weights are read from the model where they lie: no copy, so a model in training and a merged one both work.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

PLAIN_ROPE = {"default", "linear", "llama3"}  # frequencies that do not depend on the length of the prompt
Angles = tuple[Tensor, Tensor]  # cos and sin, [batch or 1, positions, 1, size / 2]


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Weights of one block, [out, in] each, and its two norms, [hidden]."""

    attention_norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    mlp_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Llama:
    """What the passes read: the blocks' weights, and embedding, positions and last norm where the decoder has them."""

    decoder: LlamaModel
    layers: tuple[Layer, ...]


def as_llama(model: PreTrainedModel) -> Llama | None:
    """None for what this module does not compute: another architecture, biases, wrapped layers."""
    if not is_plain_llama(model) or not isinstance(model, LlamaForCausalLM):
        return None
    layers = [_layer(block) for block in model.model.layers]
    whole = tuple(layer for layer in layers if layer is not None)
    return Llama(model.model, whole) if len(whole) == len(layers) else None


def is_plain_llama(model: PreTrainedModel) -> bool:
    """SiLU, no biases, rotary frequencies that do not depend on the length of the prompt."""
    if type(model) is not LlamaForCausalLM:
        return False
    config = model.config
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return config.hidden_act == "silu" and not (config.attention_bias or config.mlp_bias) and rope in PLAIN_ROPE


def _layer(block: nn.Module) -> Layer | None:
    if type(block) is not LlamaDecoderLayer:
        return None
    attention, mlp = block.self_attn, block.mlp
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    if any(type(linear) is not nn.Linear for linear in linears):
        return None  # for example LoRA that is not merged
    q, k, v, o, gate, up, down = (linear.weight for linear in linears)
    return Layer(block.input_layernorm.weight, q, k, v, o, block.post_attention_layernorm.weight, gate, up, down)


class LlamaPasses:
    """See Passes. capacity: positions that the cache holds for each prompt, prompt and beams together."""

    def __init__(self, llama: Llama, batch: int, capacity: int) -> None:
        self._decoder, self._layers = llama.decoder, llama.layers
        layers, config = llama.layers, llama.decoder.config
        self._eps = config.rms_norm_eps
        self._heads = config.num_attention_heads
        self._size = layers[0].q.shape[0] // self._heads
        self._kv_heads = layers[0].k.shape[0] // self._size
        shape = (len(layers), batch, self._kv_heads, capacity, self._size)
        self._keys = torch.empty(shape, dtype=layers[0].q.dtype, device=layers[0].q.device)
        self._values = torch.empty_like(self._keys)
        self._batch, self._filled = batch, 0

    def prefill(self, prompts: Tensor, lengths: Tensor) -> Tensor:
        batch, longest = prompts.shape
        device = prompts.device
        place = torch.arange(longest, device=device)
        x = self._decoder.embed_tokens(prompts).view(batch * longest, -1)
        angles = self._angles(x, place[None])
        causal = _mask(place <= place[:, None], x.dtype)
        *early, last = range(len(self._layers))
        for i in early:
            normed = self._remember(i, x, angles)
            self._mix(i, x, self._attend(i, normed, angles, causal, longest))
        normed = self._remember(last, x, angles)
        ends = lengths - 1
        final = torch.arange(batch, device=device) * longest + ends
        x, normed = x[final], normed[final]
        cos, sin = (of_all[0, ends][:, None] for of_all in angles)
        prompt = _mask((place < lengths[:, None])[:, None, None], x.dtype)
        self._mix(last, x, self._attend(last, normed, (cos, sin), prompt, longest))
        self._filled = longest
        return self._norm(x, self._decoder.norm.weight)

    def step(self, tokens: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        batch, count = tokens.shape
        x = self._decoder.embed_tokens(tokens).view(batch * count, -1)
        angles = self._angles(x, positions)
        mask = _mask(visible[:, None], x.dtype)
        for i in range(len(self._layers)):
            normed = self._remember(i, x, angles)
            self._mix(i, x, self._attend(i, normed, angles, mask, self._filled + count))
        self._filled += count
        return self._norm(x, self._decoder.norm.weight).view(batch, count, -1)

    def _angles(self, x: Tensor, positions: Tensor) -> Angles:
        cos, sin = self._decoder.rotary_emb(x, positions)
        half = self._size // 2
        return cos[..., None, :half], sin[..., None, :half]

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, weight.shape, weight, self._eps)

    def _remember(self, i: int, x: Tensor, angles: Angles) -> Tensor:
        """Put the new positions' keys and values behind what the cache holds; returns x [rows, hidden] normed."""
        layer = self._layers[i]
        normed = self._norm(x, layer.attention_norm)
        shape = (self._batch, -1, self._kv_heads, self._size)
        keys = functional.linear(normed, layer.k).view(shape)
        values = functional.linear(normed, layer.v).view(shape)
        new = slice(self._filled, self._filled + keys.shape[1])
        rotate(keys, angles, out=self._keys[i, :, :, new])
        self._values[i, :, :, new] = values.transpose(1, 2)
        return normed

    def _attend(self, i: int, normed: Tensor, angles: Angles, mask: Tensor, end: int) -> Tensor:
        """[rows, heads * size]: what each row reads from the cache's first `end` positions.

        mask: 0 or -inf, [queries, end] or [batch, 1, queries, end].
        """
        q = functional.linear(normed, self._layers[i].q).view(self._batch, -1, self._heads, self._size)
        queries = q.shape[1]
        rotated = q.new_empty(self._batch, self._heads, queries, self._size)
        rotate(q, angles, out=rotated)
        rotated.mul_(1 / math.sqrt(self._size))
        # Heads that share keys stand under each other as rows of one product.
        keys, values = (held[i, :, :, :end].flatten(0, 1) for held in (self._keys, self._values))
        scores = torch.bmm(rotated.view(self._batch * self._kv_heads, -1, self._size), keys.transpose(1, 2))
        scores.view(self._batch, self._heads, queries, end).add_(mask)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)
        mixed = torch.bmm(weights, values).view(self._batch, self._heads, queries, self._size)
        return mixed.transpose(1, 2).reshape(self._batch * queries, -1)

    def _mix(self, i: int, x: Tensor, attended: Tensor) -> None:
        """The rest of the block, added to x in place."""
        layer = self._layers[i]
        x.addmm_(attended, layer.o.T)
        normed = self._norm(x, layer.mlp_norm)
        gate = functional.silu(functional.linear(normed, layer.gate), inplace=True)
        x.addmm_(gate.mul_(functional.linear(normed, layer.up)), layer.down.T)


def _mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)


def rotate(x: Tensor, angles: Angles, *, out: Tensor) -> None:
    """Rotary position embedding from [batch, positions, heads, size] to [batch, heads, positions, size]."""
    cos, sin = angles
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    target = out.transpose(1, 2)
    torch.mul(first, cos, out=target[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=target[..., half:]).addcmul_(first, sin)
