"""The pieces of a search that a compiler fuses: functions of tensors whose shapes never change for one bucket.

A block of a Llama is cut where a product or an attention kernel has to begin anyway. Between blocks two tensors travel,
the residual stream and what is still to be added to it, so that the sum and the norm behind it are one kernel.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from service.catalog.trie import CODES

RECOMPILES = 4096  # one compiled form for each shape of each bucket, by intent


def enter(
    x: Tensor,
    delta: Tensor,
    norm: Tensor | None,
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """x + delta, and the queries, [batch, heads, positions, size]; keys and values of the positions are written.

    x, delta: [batch * positions, hidden]. cos, sin: float32 [batch or 1, positions or 1, size / 2].
    keys, values: [batch, key heads, positions, size], where they go. norm, qkv: of a Layer.
    """
    batch, kv_heads, positions, size = keys.shape
    x = x + delta
    projected = functional.linear(_normed(x, norm, eps), qkv).view(batch, positions, -1, size)
    turning = projected.shape[2] - kv_heads
    even, odd = projected[:, :, :turning].float().view(batch, positions, turning, -1, 2).unbind(-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)
    heads = turning - kv_heads
    keys.copy_(turned[:, :, heads:].transpose(1, 2))
    values.copy_(projected[:, :, turning:].transpose(1, 2))
    return x, turned[:, :, :heads].transpose(1, 2).contiguous()


def leave(
    x: Tensor, attended: Tensor, o: Tensor, norm: Tensor | None, gate_up: Tensor, down: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The rest of the block: the residual stream and what the MLP adds to it.

    attended: [batch, heads, positions, size].
    """
    x = x + functional.linear(attended.transpose(1, 2).reshape(x.shape[0], -1), o)
    gate, up = functional.linear(_normed(x, norm, eps), gate_up).chunk(2, dim=-1)
    return x, functional.linear(functional.silu(gate) * up, down)


def finish(x: Tensor, delta: Tensor, norm: Tensor, head: Tensor, eps: float) -> Tensor:
    """float32 [rows, 256], log-softmax over one level's codes. head: [256, hidden]."""
    logits = functional.linear(_normed(x + delta, norm, eps), head)
    return torch.log_softmax(logits.float(), dim=-1)


def look(visible: Tensor, parent: Tensor, place: Tensor, groups: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the next beams see: bool [batch, beams, keys], and as a mask, [batch, 1, groups * beams, keys] of 0 or -inf.

    visible: what the beams before saw. place: int64 [beams], where in the cache the next beams stand. groups: query
    heads a key head.
    """
    batch, beams = parent.shape
    keys = visible.shape[2]
    own = torch.arange(keys, device=parent.device) == place[:, None]
    seen = visible.gather(1, parent[..., None].expand(-1, -1, keys)) | own
    return seen, as_mask(seen, dtype).repeat(1, groups, 1).view(batch, 1, groups * beams, keys)


def as_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(visible, 0.0, -torch.inf).to(dtype)


def attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """[batch, heads, positions, size]. Heads that share keys stand under each other as rows of one product.

    keys, values: [batch, key heads, keys, size]. mask: broadcast to [batch, 1, groups * positions, keys].
    """
    batch, heads, positions, size = q.shape
    grouped = q.view(batch, keys.shape[1], -1, size)
    # The mask rules torch's flash kernel out, and cuDNN plans anew for each shape.
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        mixed = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
    return mixed.reshape(batch, heads, positions, size)


def attend_by_products(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """As `attend`, in two products that leave the softmax between them to the compiler."""
    batch, heads, positions, size = q.shape
    grouped = q.view(batch, keys.shape[1], -1, size)
    scores = torch.matmul(grouped, keys.transpose(-1, -2)).float() * scale + mask
    mixed = torch.matmul(torch.softmax(scores, dim=-1).to(values.dtype), values)
    return mixed.view(batch, heads, positions, size)


def attend_causally(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Each of the queries, which are the last positions of the keys, sees the keys up to its own."""
    positions, held = q.shape[2], keys.shape[2]
    if q.is_cuda and q.dtype is not torch.float32:
        # Called by itself because torch's front door refuses more keys than queries; the kernel aligns them at the end
        # (torch.nn.attention.bias.causal_lower_right), and takes fewer key heads than heads.
        mixed: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
            q, keys, values, 0.0, True, return_debug_mask=False, scale=scale
        )[0]
        return mixed
    place = torch.arange(held, device=q.device)
    mask = as_mask(place <= place[held - positions :, None], q.dtype)
    return attend(q, keys, values, mask.repeat(q.shape[1] // keys.shape[1], 1), scale)


def expand(
    start: Tensor, code: Tensor, nodes: Tensor, scores: Tensor, logp: Tensor, dead: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best `count` live children of all beams: nodes and parents' places, int64, and scores, [batch, count] each.

    start: int32 [capacity of the depth + 1], code: int16 [capacity of the next]: of a StaticTrie.
    nodes: int64 [batch, k], scores: float32 [batch, k], of the beams; logp: float32 [batch, k, 256].
    dead: int32 [batch, n], rising, the nodes of the next depth that a request excludes, filled up with larger numbers.
    """
    first = start[nodes]
    place = torch.arange(CODES, device=nodes.device, dtype=torch.int32)
    live = place < (start[nodes + 1] - first)[..., None]
    child = (first[..., None] + place).clamp(max=code.shape[0] - 1)
    total = scores[..., None] + logp.gather(-1, code[child].long())
    total, child = total.masked_fill(~live, -torch.inf).flatten(1), child.flatten(1)
    found = torch.searchsorted(dead, child).clamp(max=dead.shape[1] - 1)
    total = total.masked_fill(dead.gather(1, found) == child, -torch.inf)
    best, chosen = total.topk(count, dim=1)
    return child.gather(1, chosen).long(), chosen // CODES, best


def _normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], weight, eps)


class Blocks:
    """The functions above, compiled or as they are. Compiled forms are shared by all buckets that have their shapes."""

    def __init__(self, *, compiled: bool, attention: str = "kernel", mode: str | None = None) -> None:
        """attention of the beams: `kernel`, or `products`. mode: of torch.compile."""
        if compiled:
            torch._dynamo.config.recompile_limit = RECOMPILES
            torch._dynamo.config.accumulated_recompile_limit = RECOMPILES

        def made(function: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(function, dynamic=False, fullgraph=True, mode=mode) if compiled else function

        self.enter, self.leave, self.finish = made(enter), made(leave), made(finish)
        self.look, self.expand = made(look), made(expand)
        self.attend = attend if attention == "kernel" else made(attend_by_products)
