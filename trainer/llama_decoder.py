"""A Llama's blocks for training small models on a CPU: forward and backward written out, few and large kernels.

What it does less of than transformers' forward under autograd: query, key and value are one product; a norm's weight is
folded into the product behind it; the rotation is one complex product; nothing is cast or copied that the backward pass
does not read. Gradients are those of the merged weights, from which autograd goes on to whatever they are made of: LoRA
factors, norms, or the weights themselves. docs/decisions/0009 has the measurements.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

from service.generation.llama import interleaved, is_plain_llama, linears
from trainer.dropout import keep_mask
from trainer.lora import AdaptedLinear

aten = torch.ops.aten
Watch = Callable[[Tensor, Tensor, Tensor, Tensor], None]  # inputs of qkv, o, gate and up, down; norms' weights left out


@dataclass(frozen=True, slots=True, eq=False)
class _Shape:
    """turn: complex [positions, heads + key heads, size / 2]. mask: 0 or -inf, [groups * positions, positions].

    groups: how many query heads share a key head; their queries stand under each other as rows of one product.
    """

    batch: int
    positions: int
    heads: int
    kv_heads: int
    size: int
    eps: float
    turn: Tensor
    mask: Tensor

    def to_heads(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """[batch, positions, heads, size] to contiguous [batch * key heads, groups * positions, size]."""
        groups = rows.shape[2] // self.kv_heads
        out = rows.new_empty((self.batch, self.kv_heads, groups, self.positions, self.size), dtype=dtype)
        split = rows.view(self.batch, self.positions, self.kv_heads, groups, self.size)
        out.copy_(split.permute(0, 2, 3, 1, 4))
        return out.view(self.batch * self.kv_heads, groups * self.positions, self.size)

    def to_rows(self, mixed: Tensor) -> Tensor:
        """The reverse, a view: [batch, positions, key heads, groups, size]."""
        split = mixed.view(self.batch, self.kv_heads, -1, self.positions, self.size)
        return split.permute(0, 3, 1, 2, 4)


def decodes(model: PreTrainedModel) -> bool:
    """Whether decode_llama computes what this model does now: plain layers, and adapted ones that can be merged."""
    if not is_plain_llama(model) or not isinstance(model.base_model, LlamaModel):
        return False
    return all(
        type(layer) is LlamaDecoderLayer
        and all(own.mergeable if isinstance(own, AdaptedLinear) else type(own) is nn.Linear for own in linears(layer))
        for layer in model.base_model.layers
    )


def decode_llama(decoder: LlamaModel, inputs: Tensor, dropout: float) -> Tensor:
    """Last hidden states [batch, positions, hidden] of embedded tokens [batch, positions, hidden], causal.

    For models that `decodes` is true of. Products are in autocast's type where that is on; the
    residual stream stays in `inputs`' type, at least float32. dropout: on what attention and MLP add to that stream.
    """
    kind = inputs.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype
    batch, positions, hidden = inputs.shape
    with torch.autocast(kind, enabled=False):
        x = inputs.to(torch.promote_types(inputs.dtype, torch.float32)).reshape(batch * positions, hidden)
        shape = _shape(decoder, batch, positions, x, dtype)
        layers = [layer for layer in decoder.layers if isinstance(layer, LlamaDecoderLayer)]
        adapted = next((linear for linear in linears(layers[0]) if isinstance(linear, AdaptedLinear)), None)
        if adapted is not None:
            adapted.refresh()
        for layer in layers:
            keep = [keep_mask(x.shape, dropout, dtype, x.device) if dropout else None for _ in range(2)]
            x = _Block.apply(x, *_weights(layer, shape, dtype), *keep, shape, _watch(layer))  # type: ignore[no-untyped-call]  # torch
        weight = decoder.norm.weight.to(x.dtype)
        return functional.rms_norm(x, weight.shape, weight, shape.eps).view(batch, positions, hidden)


def _shape(decoder: LlamaModel, batch: int, positions: int, x: Tensor, dtype: torch.dtype) -> _Shape:
    config = decoder.config
    heads = config.num_attention_heads
    kv_heads = config.num_key_value_heads or heads
    place = torch.arange(positions, device=x.device)
    cos, sin = decoder.rotary_emb(x, place[None])
    size = cos.shape[-1]
    angles = torch.complex(cos[0, :, None, : size // 2], sin[0, :, None, : size // 2])
    mask = torch.zeros(positions, positions, dtype=dtype, device=x.device)
    mask.masked_fill_(place > place[:, None], -torch.inf)
    turn = angles.repeat(1, heads + kv_heads, 1)
    groups = heads // kv_heads
    return _Shape(batch, positions, heads, kv_heads, size, config.rms_norm_eps, turn, mask.repeat(groups, 1))


def _weights(layer: LlamaDecoderLayer, shape: _Shape, dtype: torch.dtype) -> list[Tensor]:
    """Merged qkv, o, gate, up and down [out, in], each behind the norm that feeds it.

    In q and k the two halves of each head are interleaved, so that a rotation is the product of complex numbers;
    scores do not change, since both are permuted alike.
    """
    q, k, v, o, gate, up, down = map(_merged, linears(layer))
    before, between = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
    rows = interleaved(shape.heads + shape.kv_heads, shape.size, q.device)
    qkv = torch.cat([torch.cat([q, k])[rows], v]) * before
    return [weight.to(dtype) for weight in (qkv, o, gate * between, up * between, down)]


def _watch(layer: LlamaDecoderLayer) -> Watch | None:
    """Shows the layer's inputs to whoever observes it; None when nobody does."""
    if not any(isinstance(linear, AdaptedLinear) and linear.watched for linear in linears(layer)):
        return None

    def watch(normed: Tensor, mixed: Tensor, normed_2: Tensor, product: Tensor) -> None:
        first, second = normed * layer.input_layernorm.weight, normed_2 * layer.post_attention_layernorm.weight
        for linear, x in zip(linears(layer), (first, first, first, mixed, second, second, product), strict=True):
            if isinstance(linear, AdaptedLinear):
                linear.show(x)

    return watch


def _merged(linear: nn.Module) -> Tensor:
    if isinstance(linear, AdaptedLinear):
        return linear.merged()
    assert isinstance(linear, nn.Linear)  # noqa: S101  # decodes() has said so
    return linear.weight


class _Block(torch.autograd.Function):
    """x [rows, hidden] through one block; see _weights for the weights, keep_mask for the two dropout masks."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        qkv: Tensor,
        o: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        keep_attention: Tensor | None,
        keep_mlp: Tensor | None,
        shape: _Shape,
        watch: Watch | None,
    ) -> Tensor:
        dtype, rotated = qkv.dtype, (shape.heads + shape.kv_heads) * shape.size
        normed, scale = _normed(x, shape.eps)
        normed = normed.to(dtype)
        projected = functional.linear(normed, qkv)
        turned = _turn(projected[:, :rotated].to(x.dtype), shape.turn, shape)
        q = shape.to_heads(turned[:, :, : shape.heads], dtype)
        k = shape.to_heads(turned[:, :, shape.heads :], dtype)
        v = shape.to_heads(projected[:, rotated:].view(shape.batch, shape.positions, -1, shape.size), dtype)
        scores = torch.baddbmm(shape.mask, q, k.transpose(1, 2), alpha=1 / math.sqrt(shape.size))
        weights = torch.softmax(scores, dim=-1)
        mixed = shape.to_rows(torch.bmm(weights, v)).reshape(len(x), -1)
        attended = functional.linear(mixed, o)
        if keep_attention is not None:
            attended.mul_(keep_attention)
        middle = x + attended
        normed_2, scale_2 = _normed(middle, shape.eps)
        normed_2 = normed_2.to(dtype)
        gated, raised = functional.linear(normed_2, gate), functional.linear(normed_2, up)
        active = functional.silu(gated)
        product = active * raised
        if watch is not None:
            watch(normed, mixed, normed_2, product)
        added = functional.linear(product, down)
        if keep_mlp is not None:
            added.mul_(keep_mlp)
        ctx.shape = shape
        ctx.save_for_backward(
            *(x, scale, normed, q, k, v, weights, mixed, middle, scale_2, normed_2, gated, raised, active, product),
            *(qkv, o, gate, up, down, keep_attention, keep_mlp),
        )
        return middle + added

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, scale, normed, q, k, v, weights, mixed, middle, scale_2, normed_2, gated, raised, active, product) = (
            ctx.saved_tensors[:15]
        )
        qkv, o, gate, up, down, keep_attention, keep_mlp = ctx.saved_tensors[15:]
        shape, dtype, trains = ctx.shape, qkv.dtype, ctx.needs_input_grad[1:6]
        (of_output,) = gradients

        of_added = of_output.to(dtype) if keep_mlp is None else of_output.to(dtype) * keep_mlp
        of_down = of_added.T @ product if trains[4] else None
        of_product = of_added @ down
        of_raised = of_product * active
        of_gated = aten.silu_backward(of_product.mul_(raised), gated)
        of_gate = of_gated.T @ normed_2 if trains[2] else None
        of_up = of_raised.T @ normed_2 if trains[3] else None
        of_normed_2 = torch.addmm(of_gated @ gate, of_raised, up)
        of_middle = _through_norm(of_normed_2, middle, scale_2, of_output)

        of_attended = of_middle.to(dtype) if keep_attention is None else of_middle.to(dtype) * keep_attention
        of_o = of_attended.T @ mixed if trains[1] else None
        of_mixed = shape.to_heads((of_attended @ o).view(shape.batch, shape.positions, -1, shape.size), dtype)
        of_v = torch.bmm(weights.transpose(1, 2), of_mixed)
        of_weights = torch.bmm(of_mixed, v.transpose(1, 2))
        of_scores = aten._softmax_backward_data(of_weights, weights, -1, dtype)
        of_turned = x.new_empty(shape.batch, shape.positions, shape.heads + shape.kv_heads, shape.size)
        split = (shape.batch, shape.positions, shape.kv_heads, -1, shape.size)
        of_turned[:, :, : shape.heads].view(split).copy_(shape.to_rows(torch.bmm(of_scores, k)))
        of_turned[:, :, shape.heads :].view(split).copy_(shape.to_rows(torch.bmm(of_scores.transpose(1, 2), q)))
        back = _turn(of_turned, shape.turn.conj() / math.sqrt(shape.size), shape)
        of_projected = normed.new_empty(len(x), len(qkv))
        rotated = back.shape[2] * shape.size
        of_projected[:, :rotated] = back.view(len(x), rotated)
        of_projected[:, rotated:].view(split).copy_(shape.to_rows(of_v))
        of_qkv = of_projected.T @ normed if trains[0] else None
        of_x = _through_norm(of_projected @ qkv, x, scale, of_middle)
        return of_x, of_qkv, of_o, of_gate, of_up, of_down, None, None, None, None


def _turn(rows: Tensor, turn: Tensor, shape: _Shape) -> Tensor:
    """Rotary positions: [.., heads * size] or [.., heads, size] to [batch, positions, heads, size]."""
    pairs = torch.view_as_complex(rows.reshape(shape.batch, shape.positions, -1, shape.size // 2, 2))
    return torch.view_as_real(pairs * turn).flatten(-2)


def _normed(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x over its root mean square, and one over that, [rows, 1]."""
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return x * scale, scale


def _through_norm(of_normed: Tensor, x: Tensor, scale: Tensor, beside: Tensor) -> Tensor:
    """The gradient of x from that of x * scale and from what goes around the norm."""
    own = of_normed.to(x.dtype)
    along = (own * x).sum(dim=-1, keepdim=True).mul_(scale).mul_(scale).div_(-x.shape[-1])
    return torch.addcmul(beside, own.addcmul_(x, along), scale)
