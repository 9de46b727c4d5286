"""Constrained beam search whose beams share one cache (DESIGN.md, ideas 4 and 5).

The prompt is prefilled once. At each level the beams are K query positions appended to the cache; beam j sees the
prompt, its own ancestors and itself through a boolean mask that is carried along by a gather on the parent index.
Nothing in the cache is copied or reordered, and the fourth code is never decoded: 1 prefill + 3 small forwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.catalog.trie import CODES, LEVELS, Trie
from service.generation.backbone import Backbone
from service.generation.llama import Llama, Prefix
from service.generation.passes import open_passes


@dataclass(frozen=True, eq=False)
class TrieTensors:
    """A Trie on a device; on a CPU its own arrays.

    code: per depth 1..4, int16 [nodes].
    child_start: per depth 0..3, int32 [nodes + 1].
    width: per depth 0..3, the most children that a node has.
    """

    code: tuple[Tensor, ...]
    child_start: tuple[Tensor, ...]
    width: tuple[int, ...]
    leaves: int

    @classmethod
    def of(cls, trie: Trie, device: torch.device) -> "TrieTensors":
        return cls(
            code=tuple(torch.from_numpy(codes).to(device) for codes in trie.code),
            child_start=tuple(torch.from_numpy(s).to(device) for s in trie.child_start),
            width=tuple(int((s[1:] - s[:-1]).max(initial=0)) for s in trie.child_start),
            leaves=trie.leaves,
        )


@dataclass(frozen=True, eq=False)
class Pruned:
    """Children of one depth that requests exclude, int64 [m] each: whose, below which node, at which place there."""

    request: Tensor
    parent: Tensor
    place: Tensor


def pruned(excluded: Sequence[NDArray[np.int64]], trie: Trie, device: torch.device) -> tuple[Pruned | None, ...]:
    """Per depth 0..3 what `expand` leaves out for requests that exclude these leaves; None: nothing."""
    leaves = np.concatenate(excluded)
    if not len(leaves):
        return (None,) * LEVELS
    request = np.repeat(np.arange(len(excluded)), [len(own) for own in excluded])
    found = []
    for dead in trie.dead_nodes(leaves, request):
        parts = (dead.request, dead.parent, dead.node - dead.first_sibling)
        found.append(Pruned(*(torch.from_numpy(part).to(device) for part in parts)) if len(dead.node) else None)
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Choice:
    """What requests of a batch want beside exclusions.

    live: request -> per depth 1..4, int64, rising, the only nodes that it may pass. penalty: float64 [batch, 1], nats
    for each better path with the same first code; None: nobody has one.
    """

    live: Mapping[int, tuple[Tensor, ...]]
    penalty: Tensor | None


def choice(
    within: Sequence[NDArray[np.int64] | None], penalties: Sequence[float], trie: Trie, device: torch.device
) -> Choice | None:
    """None when every request is plain. within: leaves, rising; penalties: nats."""
    live = {
        i: tuple(torch.from_numpy(nodes).to(device) for nodes in trie.live_nodes(leaves))
        for i, leaves in enumerate(within)
        if leaves is not None
    }
    penalty = torch.tensor(penalties, dtype=torch.float64, device=device)[:, None] if any(penalties) else None
    return Choice(live, penalty) if live or penalty is not None else None


@lru_cache(maxsize=2)  # the catalogue in use and its successor; many models search the same one
def trie_tensors(trie: Trie, device: torch.device) -> TrieTensors:
    """The tensors of `trie`, made once for all models."""
    return TrieTensors.of(trie, device)


@dataclass(frozen=True, eq=False)
class Beams:
    """nodes, parent: int64 [batch, k]; scores: float32 [batch, k], -inf for a beam that leads nowhere.

    kind: int64 [batch, k], the beams' nodes at depth 1; None at depth 0 and where nobody asks for it.
    """

    nodes: Tensor
    parent: Tensor
    scores: Tensor
    kind: Tensor | None = None


def expand(
    trie: TrieTensors,
    depth: int,
    beams: Beams,
    logp: Tensor,
    dead: Pruned | None,
    width: int,
    choice: Choice | None = None,
) -> Beams:
    """The best `width` live children of all beams.

    depth: 0..3, the depth of `beams.nodes`. logp: float32 [batch, k, 256], log-softmax over the next level's codes.
    dead: the children that are left out.
    """
    start = trie.child_start[depth]
    first = start[beams.nodes]
    place = torch.arange(trie.width[depth], device=logp.device)
    child = first[..., None] + place
    live = place < (start[beams.nodes + 1] - first)[..., None]
    child = child.clamp(max=trie.code[depth].shape[0] - 1).long()
    if dead is not None:
        # Each pruned child lies below at most one beam of its request: a live beam's node is in no other.
        entry, beam = (beams.nodes[dead.request] == dead.parent[:, None]).nonzero(as_tuple=True)
        live[dead.request[entry], beam, dead.place[entry]] = False
    for request, nodes in choice.live.items() if choice is not None else ():
        live[request] &= _among(child[request], nodes[depth])
    total = beams.scores[..., None] + logp.gather(-1, trie.code[depth][child].long())
    total = total.masked_fill(~live, -torch.inf).flatten(1)
    if choice is None or choice.penalty is None:
        scores, chosen = total.topk(min(width, total.shape[1]), dim=1)
        return Beams(child.flatten(1).gather(1, chosen), chosen // trie.width[depth], scores)
    child = child.flatten(1)
    kind = child if beams.kind is None else beams.kind.repeat_interleave(trie.width[depth], dim=1)
    lowered = total.double() - choice.penalty * _places(total, kind)
    chosen = lowered.topk(min(width, total.shape[1]), dim=1).indices
    scores = total.gather(1, chosen)
    return Beams(child.gather(1, chosen), chosen // trie.width[depth], scores, kind.gather(1, chosen))


def _among(values: Tensor, rising: Tensor) -> Tensor:
    """bool like `values`: which of them are in `rising`, int64 [n]."""
    if not len(rising):
        return torch.zeros_like(values, dtype=torch.bool)
    return rising[torch.searchsorted(rising, values).clamp(max=len(rising) - 1)] == values


def _places(total: Tensor, kind: Tensor) -> Tensor:
    """int64 [batch, n]: how many entries of the same kind score better, or as well and come before."""
    order = total.argsort(dim=1, descending=True, stable=True)
    by_kind, within = kind.gather(1, order).sort(dim=1, stable=True)
    place = torch.arange(total.shape[1], device=total.device).expand_as(total)
    begins = torch.ones_like(by_kind, dtype=torch.bool)
    begins[:, 1:] = by_kind[:, 1:] != by_kind[:, :-1]
    first = torch.where(begins, place, 0).cummax(dim=1).values
    return torch.zeros_like(order).scatter(1, order.gather(1, within), place - first)


@torch.inference_mode()
def beam_search(
    backbone: Backbone,
    llama: Llama | None,
    prompts: Tensor,
    lengths: Tensor,
    trie: TrieTensors,
    dead: Sequence[Pruned | None],
    width: int,
    prefix: Prefix | None = None,
    choice: Choice | None = None,
) -> tuple[Tensor, Tensor]:
    """The best leaves of the trie for each prompt.

    llama: the backbone's weights packed, where they can be (service.generation.llama).
    prefix: what all prompts begin with, read by `llama`; prompts are what follows it.
    prompts: int64 [batch, longest], padded on the right; lengths: int64 [batch], at least 1.
    dead: per depth 0..3 what `expand` leaves out. width: beams. choice: what else requests want.
    Returns leaves int64 [batch, k] and scores float32 [batch, k], best first, k <= width; a slot with score -inf is
    empty.
    """
    batch, longest = prompts.shape
    device = prompts.device
    if trie.leaves == 0:
        return torch.empty(batch, 0, dtype=torch.long, device=device), torch.empty(batch, 0, device=device)
    width = min(width, trie.leaves)
    passes = open_passes(backbone, llama, batch, longest + (LEVELS - 1) * width, prefix)
    logp = _level_log_softmax(backbone, passes.prefill(prompts, lengths)[:, None], 0)
    root = torch.zeros(batch, 1, dtype=torch.long, device=device)
    scores = torch.zeros(batch, 1, dtype=torch.float32, device=device)
    beams = expand(trie, 0, Beams(root, root, scores), logp, dead[0], width, choice)
    ends = passes.shared + lengths
    visible = (torch.arange(passes.shared + longest, device=device) < ends[:, None])[:, None]
    for depth in range(1, LEVELS):
        count = beams.nodes.shape[1]
        mine = torch.eye(count, dtype=torch.bool, device=device).expand(batch, -1, -1)
        # visible: bool [batch, beams of before, keys]
        ancestors = visible.gather(1, beams.parent[..., None].expand(-1, -1, visible.shape[2]))
        visible = torch.cat([ancestors, mine], dim=2)
        tokens = backbone.first_code_token + CODES * (depth - 1) + trie.code[depth - 1][beams.nodes].long()
        hidden = passes.step(tokens, (ends + depth - 1)[:, None].expand(-1, count), visible)
        beams = expand(trie, depth, beams, _level_log_softmax(backbone, hidden, depth), dead[depth], width, choice)
    return beams.nodes, beams.scores


def _level_log_softmax(backbone: Backbone, hidden: Tensor, level: int) -> Tensor:
    """float32 [..., 256]: the score's per-level softmax (DESIGN.md, idea 3)."""
    return torch.log_softmax(backbone.level_logits(hidden, level).float(), dim=-1)
