"""The pieces of a search that a compiler fuses: functions of tensors whose shapes never change for one bucket.

A block of a Llama is cut where a product or an attention kernel has to begin anyway. Between blocks two tensors travel,
the residual stream and what is still to be added to it, so that the sum and the norm behind it are one kernel.
"""

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from service.catalog.trie import CODES

RECOMPILES = 4096  # one compiled form for each shape of each bucket, by intent


def begin(
    code: Tensor, nodes: Tensor, first_token: int, embedding: Tensor, cos: Tensor, sin: Tensor, place: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The beams' tokens embedded, [batch * k, hidden], zeros to be added to them, and cos and sin of their positions.

    nodes: int64 [batch, k], nodes of a depth, and code: int16, that depth's of a StaticTrie. first_token: of code 0.
    place: int64 [batch], where the beams of a request stand, in cos and sin, float32 [positions, size / 2].
    """
    x = functional.embedding((code[nodes].int() + first_token).flatten(), embedding)
    return x, torch.zeros_like(x), cos[place][:, None], sin[place][:, None]


def project(x: Tensor, delta: Tensor, norm: Tensor | None, qkv: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + delta, and its queries, keys and values, [rows, heads and twice the key heads * size]."""
    x = x + delta
    return x, functional.linear(_normed(x, norm, eps), qkv)


def remember(projected: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The queries turned by their positions, [batch, heads, positions, size]; keys and values are written.

    projected: of `project`, batch * positions rows. cos, sin: float32 [batch or 1, positions or 1, size / 2].
    keys, values: [batch, key heads, positions, size], where they go; rows of one head lie behind each other.
    """
    batch, kv_heads, positions, size = keys.shape
    projected = projected.view(batch, positions, -1, size)
    turning = projected.shape[2] - kv_heads
    even, odd = projected[:, :, :turning].float().view(batch, positions, turning, -1, 2).unbind(-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(projected.dtype)
    heads = turning - kv_heads
    keys.copy_(turned[:, :, heads:].transpose(1, 2))
    values.copy_(projected[:, :, turning:].transpose(1, 2))
    return turned[:, :, :heads].transpose(1, 2).contiguous()


def attend(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float) -> Tensor:
    """What each query reads, [batch * positions, heads * size].

    q: [batch, heads, positions, size]. keys, values: [batch, key heads, keys, size]; heads that share keys stand under
    each other as rows of one product. seen: bool [batch or 1, positions or 1, keys]; nobody sees nothing.
    """
    batch, _, positions, size = q.shape
    kv_heads, held = keys.shape[1:3]
    scores = torch.matmul(q.view(batch, kv_heads, -1, size), keys.transpose(-1, -2)).float() * scale
    scores = scores.view(batch, kv_heads, -1, positions, held).masked_fill(~seen[:, None, None], -torch.inf)
    weights = torch.softmax(scores, dim=-1).to(values.dtype).view(batch, kv_heads, -1, held)
    return as_rows(torch.matmul(weights, values).view(q.shape))


def attend_causally(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """As `attend`; the queries are the last positions of the keys, and each sees the keys up to its own."""
    positions, held = q.shape[2], keys.shape[2]
    if q.is_cuda and q.dtype is not torch.float32:
        # Called by itself because torch's front door refuses more keys than queries; the kernel aligns them at the end
        # (torch.nn.attention.bias.causal_lower_right), and takes fewer key heads than heads.
        mixed: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
            q, keys, values, 0.0, True, return_debug_mask=False, scale=scale
        )[0]
        return as_rows(mixed)
    place = torch.arange(held, device=q.device)
    return attend(q, keys, values, (place <= place[held - positions :, None])[None], scale)


def as_rows(mixed: Tensor) -> Tensor:
    """[batch, heads, positions, size] as [batch * positions, heads * size]."""
    return mixed.transpose(1, 2).reshape(mixed.shape[0] * mixed.shape[2], -1)


def leave(
    x: Tensor, attended: Tensor, o: Tensor, norm: Tensor | None, gate_up: Tensor, down: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The rest of the block: the residual stream and what the MLP adds to it. attended: of `attend`."""
    # In float32 the sum stays with the norm behind it; else it becomes part of the product, and x is copied for that.
    x = (x.float() + functional.linear(attended, o).float()).to(x.dtype)
    gate, up = functional.linear(_normed(x, norm, eps), gate_up).chunk(2, dim=-1)
    return x, functional.linear(functional.silu(gate) * up, down)


def finish(x: Tensor, delta: Tensor, norm: Tensor, head: Tensor, eps: float) -> Tensor:
    """float32 [rows, 256], log-softmax over one level's codes. head: [256, hidden]."""
    logits = functional.linear(_normed(x + delta, norm, eps), head)
    return torch.log_softmax(logits.float(), dim=-1)


def look(seen: Tensor, parent: Tensor, place: Tensor) -> Tensor:
    """What the next beams see, bool [batch, beams, keys]: what their parents saw, and themselves.

    seen: of the beams before. place: int64 [beams], where in the cache the next beams stand.
    """
    keys = seen.shape[2]
    own = torch.arange(keys, device=parent.device) == place[:, None]
    return seen.gather(1, parent[..., None].expand(-1, -1, keys)) | own


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
    normed = functional.rms_norm(x, x.shape[-1:], weight, eps)
    return normed / math.sqrt(x.shape[-1]) if weight is None else normed  # see Layer


class Blocks:
    """The functions above, compiled or as they are. Compiled forms are shared by all buckets that have their shapes."""

    def __init__(self, *, compiled: bool, kernels: bool = False, mode: str | None = None) -> None:
        """kernels: with service.generation.kernels where they replace functions. mode: of torch.compile."""
        if compiled:
            torch._dynamo.config.recompile_limit = RECOMPILES
            torch._dynamo.config.accumulated_recompile_limit = RECOMPILES

        def made(function: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(function, dynamic=False, fullgraph=True, mode=mode) if compiled else function

        self.project, self.leave, self.finish = made(project), made(leave), made(finish)
        self.look, self.expand = made(look), made(expand)
        self.remember, self.attend = made(remember), made(attend)
        self.attend_causally, self.begin = attend_causally, made(begin)
        if kernels:
            from service.generation import kernels as written

            self.remember, self.attend = written.remember, written.attend
            self.attend_causally = written.attend_causally

    @classmethod
    def best(cls, device: torch.device) -> "Blocks":
        """What is fastest there: compiled, with kernels, on a GPU whose torch has Triton; else as they are."""
        has = device.type == "cuda" and importlib.util.find_spec("triton") is not None
        return cls(compiled=has, kernels=has)
