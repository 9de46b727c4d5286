"""A whole search as a program of fixed shapes: what a CUDA graph can hold, and a CPU can run as it is.

It is service.generation.beam without anything that depends on data: the prompt is as long as its bucket, a beam's
children are 256 places of which some are empty, excluded nodes are a list of fixed length, and the trie lies in arrays
with room to grow. Nothing is read back before the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from service.catalog.trie import CODES, LEVELS, Trie
from service.generation.backbone import Backbone
from service.generation.blocks import Blocks
from service.generation.llama import Llama, Prefix

NODES = 1 << 18  # room of a depth of the trie at first: 2 MiB, and enough for most catalogues
EXCLUSIONS = 1024  # nodes of one depth that a request can exclude
NEVER = 2**31 - 1  # no node


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """Shapes of one program. tokens: of each prompt, behind the prefix. width: beams."""

    batch: int
    tokens: int
    width: int

    @property
    def counts(self) -> tuple[int, ...]:
        """Beams at depth 1..4."""
        counts = [1]
        for _ in range(LEVELS):
            counts.append(min(self.width, counts[-1] * CODES))
        return tuple(counts[1:])

    def positions(self, prefix: int) -> int:
        """Places in the cache of a prompt: a multiple of 16, so that rows of masks are aligned."""
        return -(-(prefix + self.tokens + sum(self.counts[:-1])) // 16) * 16


class StaticTrie:
    """A trie in arrays that stay where they are while it changes.

    code: per depth 1..4, int16 [capacity]. child_start: per depth 0..3, int32 [capacity + 1]; nodes that are not there
    have no children.
    """

    def __init__(self, device: torch.device, nodes: int = NODES) -> None:
        """nodes: capacity of each depth; one size, so that what is compiled for one depth serves the others."""
        self.code = tuple(torch.zeros(nodes, dtype=torch.int16, device=device) for _ in range(LEVELS))
        self.child_start = tuple(torch.zeros(nodes + 1, dtype=torch.int32, device=device) for _ in range(LEVELS))
        self.nodes = nodes
        self._held: Trie | None = None

    def fits(self, trie: Trie) -> bool:
        return max(map(len, trie.code)) <= self.nodes

    def hold(self, trie: Trie) -> None:
        """Copy the trie in, unless it is there. It must fit."""
        if self._held is trie:
            return
        self._held = None
        for room, codes in zip(self.code, trie.code, strict=True):
            room[: len(codes)].copy_(torch.from_numpy(codes))
        for room, starts in zip(self.child_start, trie.child_start, strict=True):
            room[: len(starts)].copy_(torch.from_numpy(starts))
            room[len(starts) :].fill_(int(starts[-1]))
        self._held = trie


def room_for(trie: Trie, nodes: int) -> int:
    """Capacity, doubled from `nodes` until the trie has room and half as much again."""
    while nodes < 1.5 * max(map(len, trie.code)):
        nodes *= 2
    return nodes


def dead_lists(trie: Trie | None, excluded: Sequence[NDArray[np.int64]], out: NDArray[np.int32]) -> None:
    """Write what `expand` of blocks leaves out into out, int32 [4, batch, n]; n is at least the longest of `excluded`.

    trie: whose leaves `excluded` are; None where there are none.
    """
    out.fill(NEVER)
    if trie is None or not any(map(len, excluded)):
        return
    request = np.repeat(np.arange(len(excluded)), [len(own) for own in excluded])
    for lists, dead in zip(out, trie.dead_nodes(np.concatenate(excluded), request), strict=True):
        place = np.arange(len(dead.node)) - np.searchsorted(dead.request, dead.request)
        lists[dead.request, place] = dead.node


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """What a program reads of a model. cos, sin: float32 [positions, size / 2]. head: [4, 256, hidden]."""

    llama: Llama
    prefix: Prefix | None
    cos: Tensor
    sin: Tensor
    head: Tensor
    first_code_token: int

    @classmethod
    def of(cls, backbone: Backbone, llama: Llama, prefix: Prefix | None, positions: int) -> "Weights":
        place = torch.arange(positions, device=backbone.device)[None]
        x = torch.empty(0, dtype=torch.float32, device=backbone.device)
        cos, sin = (turn[0, :, : llama.size // 2].contiguous() for turn in llama.decoder.rotary_emb(x, place))
        return cls(llama, prefix, cos, sin, backbone.head, backbone.first_code_token)

    @property
    def shared(self) -> int:
        """Tokens of the prefix."""
        return 0 if self.prefix is None else len(self.prefix)


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """tokens: int32 [batch, tokens], padded on the right; lengths: int32 [batch]; dead: int32 [4, batch, n]."""

    tokens: Tensor
    lengths: Tensor
    dead: Tensor


def run(
    weights: Weights, blocks: Blocks, trie: StaticTrie, bucket: Bucket, inputs: Inputs, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    """Leaves int64 [batch, width] and scores float32 [batch, width] falling; a slot with score -inf is empty.

    keys, values: [layers, batch, key heads, positions, size], the cache; finite everywhere, for what is masked is read
    too.
    """
    llama = weights.llama
    embedding, norm = llama.decoder.embed_tokens.weight, llama.decoder.norm.weight
    batch, first = bucket.batch, weights.shared + bucket.tokens
    ends = weights.shared + inputs.lengths.long()
    x, delta = prefill(weights, blocks, inputs, keys, values)
    seen = (torch.arange(keys.shape[3], device=x.device) < ends[:, None])[:, None]
    nodes = parent = torch.zeros(batch, 1, dtype=torch.long, device=x.device)
    scores = torch.zeros(batch, 1, dtype=torch.float32, device=x.device)
    for depth, count in enumerate(bucket.counts):
        width = nodes.shape[1]
        if depth:
            end = first + width
            place = torch.arange(first, end, device=x.device)
            seen = blocks.look(seen, parent, place)
            first_token = weights.first_code_token + CODES * (depth - 1)
            x, delta, *turn = blocks.begin(
                trie.code[depth - 1], nodes, first_token, embedding, weights.cos, weights.sin, ends + (depth - 1)
            )
            for i in range(len(llama.layers)):
                x, q = _enter(blocks, llama, i, x, delta, turn, keys[i, :, :, first:end], values[i, :, :, first:end])
                x, delta = _leave(blocks, llama, i, x, blocks.attend(q, keys[i], values[i], seen, llama.scale))
            first = end
        logp = blocks.finish(x, delta, norm, weights.head[depth], llama.eps).view(batch, width, CODES)
        nodes, parent, scores = blocks.expand(
            trie.child_start[depth], trie.code[depth], nodes, scores, logp, inputs.dead[depth], count
        )
    return nodes, scores


def prefill(weights: Weights, blocks: Blocks, inputs: Inputs, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Fill the cache; the residual stream at each prompt's last position and what is to be added, [batch, hidden]."""
    llama, (batch, tokens) = weights.llama, inputs.tokens.shape
    shared = weights.shared
    end = shared + tokens
    if weights.prefix is not None:
        keys[:, :, :, :shared].copy_(weights.prefix.keys[:, None])
        values[:, :, :, :shared].copy_(weights.prefix.values[:, None])
    x = functional.embedding(inputs.tokens, llama.decoder.embed_tokens.weight).view(batch * tokens, -1)
    delta = torch.zeros_like(x)
    turn = weights.cos[None, shared:end], weights.sin[None, shared:end]
    *early, last = range(len(llama.layers))
    for i in early:
        x, q = _enter(blocks, llama, i, x, delta, turn, keys[i, :, :, shared:end], values[i, :, :, shared:end])
        attended = blocks.attend_causally(q, keys[i, :, :, :end], values[i, :, :, :end], llama.scale)
        x, delta = _leave(blocks, llama, i, x, attended)
    x, q = _enter(blocks, llama, last, x, delta, turn, keys[last, :, :, shared:end], values[last, :, :, shared:end])
    rows, ends = torch.arange(batch, device=x.device), inputs.lengths.long()
    x, q = x.view(batch, tokens, -1)[rows, ends - 1], q[rows, :, ends - 1].unsqueeze(2)
    seen = (torch.arange(keys.shape[3], device=x.device) < (shared + ends)[:, None])[:, None]
    return _leave(blocks, llama, last, x, blocks.attend(q, keys[last], values[last], seen, llama.scale))


def _enter(
    blocks: Blocks, llama: Llama, i: int, x: Tensor, delta: Tensor, turn: Sequence[Tensor], *new: Tensor
) -> tuple[Tensor, Tensor]:
    layer = llama.layers[i]
    x, projected = blocks.project(x, delta, layer.attention_norm, layer.qkv, llama.eps)
    return x, blocks.remember(projected, *turn, *new)


def _leave(blocks: Blocks, llama: Llama, i: int, x: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
    layer = llama.layers[i]
    left: tuple[Tensor, Tensor] = blocks.leave(
        x, attended, layer.o, layer.mlp_norm, layer.gate_up, layer.down, llama.eps
    )
    return left
