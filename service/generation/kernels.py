"""Two Triton kernels for what a compiler leaves in pieces: a block's rotation and cache writes; the beams' attention.

torch's memory-efficient attention takes 18 microseconds for ten beams on an H100, of which the bytes explain one; the
rotation of queries, the one of keys and the copy of values are three launches otherwise. Needs triton, which torch's
builds for GPUs bring along.
"""

# mypy: disable-error-code="import-not-found,untyped-decorator,no-untyped-def"
# Triton's own language has no types, and builds of torch for CPUs come without it.
import torch
import triton
import triton.language as tl
from torch import Tensor

from service.generation import blocks

HEADS = 16  # of one program of `remember`
FLASH_ROWS, FULL = 128, 132
"""Queries of one program of torch's causal attention, and how many such programs keep a large GPU busy."""
LOG2E = 1.4426950408889634


@triton.jit
def _remember(
    projected, cos, sin, q, keys, values,
    positions, heads, kv_heads,
    cos_batch, cos_position, key_batch, key_head, value_batch, value_head,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    batch, position = row // positions, row % positions
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = heads + 2 * kv_heads
    place, pair = tl.arange(0, SIZE), tl.arange(0, SIZE // 2)
    there = (head < total)[:, None]
    at = projected + row.to(tl.int64) * total * SIZE + head[:, None] * SIZE + place[None, :]
    found = tl.load(at, mask=there, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(found, (BLOCK, SIZE // 2, 2)))
    turn = batch * cos_batch + position * cos_position + pair
    c, s = tl.load(cos + turn)[None, :], tl.load(sin + turn)[None, :]
    turned = tl.reshape(tl.join(even * c - odd * s, even * s + odd * c), (BLOCK, SIZE))
    turns = (head < heads + kv_heads)[:, None]
    out = tl.where(turns, turned, found).to(q.dtype.element_ty)
    is_q = head < heads
    is_key = (head >= heads) & (head < heads + kv_heads)
    is_value = (head >= heads + kv_heads) & (head < total)
    q_at = q + ((batch * heads + head) * positions + position).to(tl.int64)[:, None] * SIZE + place[None, :]
    tl.store(q_at, out, mask=is_q[:, None])
    batch = batch.to(tl.int64)
    key = keys + batch * key_batch + position * SIZE + (head - heads)[:, None] * key_head + place[None, :]
    tl.store(key, out, mask=is_key[:, None])
    held = head - heads - kv_heads
    value = values + batch * value_batch + position * SIZE + held[:, None] * value_head + place[None, :]
    tl.store(value, out, mask=is_value[:, None])


@triton.jit
def _attend(
    q, keys, values, seen, out,
    positions, heads, groups, scale,
    key_batch, key_head, value_batch, value_head, seen_batch, seen_position,
    SIZE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, HELD: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    kv_heads = heads // groups
    batch, kv_head = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    real = row < groups * positions
    beam, head = row % positions, kv_head * groups + row // positions
    place = tl.arange(0, SIZE)
    first = (batch * heads + kv_head * groups) * positions
    asked = tl.load(q + (first + row)[:, None] * SIZE + place[None, :], mask=real[:, None], other=0.0)
    wide = batch.to(tl.int64)
    keys += wide * key_batch + kv_head * key_head
    values += wide * value_batch + kv_head * value_head
    seen += wide * seen_batch
    highest = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, SIZE), tl.float32)
    for start in range(0, HELD, KEYS):
        position = start + tl.arange(0, KEYS)
        inside = position < HELD
        at = position[:, None] * SIZE + place[None, :]
        key = tl.load(keys + at, mask=inside[:, None], other=0.0)
        value = tl.load(values + at, mask=inside[:, None], other=0.0)
        if CAUSAL:
            visible = inside[None, :] & (position[None, :] <= (HELD - positions + beam)[:, None])
        else:
            there = real[:, None] & inside[None, :]
            visible = tl.load(seen + beam[:, None] * seen_position + position[None, :], mask=there, other=0) != 0
        scores = tl.dot(asked, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where(visible, scores, -float("inf"))
        top = tl.maximum(highest, tl.max(scores, 1))
        base = tl.where(top == -float("inf"), 0.0, top)
        weights = tl.exp2(scores - base[:, None])
        kept = tl.exp2(highest - base)
        total = total * kept + tl.sum(weights, 1)
        mixed = mixed * kept[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        highest = top
    mixed = mixed / tl.where(total == 0, 1.0, total)[:, None]
    at = ((batch * positions + beam) * heads + head)[:, None] * SIZE + place[None, :]
    tl.store(out + at, mixed.to(out.dtype.element_ty), mask=real[:, None])


def remember(projected: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """See service.generation.blocks.remember."""
    batch, kv_heads, positions, size = keys.shape
    total = projected.shape[1] // size
    heads = total - 2 * kv_heads
    q = torch.empty(batch, heads, positions, size, dtype=projected.dtype, device=projected.device)
    grid = (batch * positions, triton.cdiv(total, HEADS))
    _remember[grid](
        projected, cos, sin, q, keys, values, positions, heads, kv_heads,
        cos.stride(0) if cos.shape[0] > 1 else 0, cos.stride(1) if cos.shape[1] > 1 else 0,
        keys.stride(0), keys.stride(1), values.stride(0), values.stride(1),
        SIZE=size, BLOCK=HEADS,
    )  # fmt: skip
    return q


def attend(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float) -> Tensor:
    """See service.generation.blocks.attend."""
    return _attended(q, keys, values, seen, scale)


def attend_causally(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """See service.generation.blocks.attend_causally, which is left to torch where that keeps the whole GPU busy."""
    batch, heads, positions, _ = q.shape
    if q.dtype is torch.float32 or batch * heads * triton.cdiv(positions, FLASH_ROWS) >= FULL:
        return blocks.attend_causally(q, keys, values, scale)
    return _attended(q, keys, values, None, scale)


def _attended(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None, scale: float) -> Tensor:
    """seen None: causal."""
    batch, heads, positions, size = q.shape
    kv_heads, held = keys.shape[1], keys.shape[2]
    groups = heads // kv_heads
    out = torch.empty(batch * positions, heads * size, dtype=q.dtype, device=q.device)
    few = groups * positions <= 16 or (seen is not None and batch * kv_heads < 64)
    rows = 16 if few else 64 if size <= 64 else 32  # these and the keys of a round: within 80 KiB, that any GPU has
    grid = (batch * kv_heads, triton.cdiv(groups * positions, rows))
    steps = (0, 0) if seen is None else (seen.stride(0) * (seen.shape[0] > 1), seen.stride(1) * (seen.shape[1] > 1))
    _attend[grid](
        q, keys, values, out if seen is None else seen.view(torch.uint8), out, positions, heads, groups, scale * LOG2E,
        keys.stride(0), keys.stride(1), values.stride(0), values.stride(1), *steps,
        SIZE=size, ROWS=rows, KEYS=64 if size <= 128 else 32, HELD=held,
        CAUSAL=seen is None, num_warps=4,
    )  # fmt: skip
    return out
