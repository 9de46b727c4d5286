"""A small adapter as a vector, its groups and the metric written out: what the tests of trainer.proximal share."""

import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from service.settings import GroupBy
from trainer.proximal import LoraTensors, OutputKL, Quadratic, SoftmaxKL

# (layer, module, factor, shape); layers 1 and 11 so that one number is the beginning of the other.
PARTS = [
    (1, "self_attn.q_proj", "A", (2, 3)),
    (1, "self_attn.q_proj", "B", (3, 2)),
    (1, "mlp.up_proj", "A", (2, 3)),
    (1, "mlp.up_proj", "B", (4, 2)),
    (11, "self_attn.q_proj", "A", (2, 3)),
    (11, "self_attn.q_proj", "B", (3, 2)),
]
SIZE = sum(rows * columns for *_, (rows, columns) in PARTS)
every_grouping = pytest.mark.parametrize("group_by", GroupBy)


def name(layer: int, module: str, factor: str) -> str:
    return f"base_model.model.model.layers.{layer}.{module}.lora_{factor}.weight"


def as_tensors(v: Tensor) -> dict[str, Tensor]:
    """A vector [SIZE] as an adapter; gradients flow through."""
    pieces = v.split([rows * columns for *_, (rows, columns) in PARTS])
    return {name(*part[:3]): piece.view(part[3]) for part, piece in zip(PARTS, pieces, strict=True)}


def members(group_by: GroupBy) -> list[list[int]]:
    """Which places of the vector each group holds, from the definition."""
    groups: dict[object, list[int]] = defaultdict(list)
    place = 0
    for layer, module, factor, (rows, columns) in PARTS:
        for row in range(rows):
            for column in range(columns):
                rank = row if factor == "A" else column
                key = {
                    GroupBy.TENSOR: (layer, module, factor),
                    GroupBy.MODULE: (layer, module),
                    GroupBy.RANK: (layer, module, factor, rank),
                    GroupBy.LAYER: layer,
                }[group_by]
                groups[key].append(place)
                place += 1
    return list(groups.values())


def state(seed: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in values)
    return [math.exp(x) / total for x in values]


def metric(previous: Tensor, group_by: GroupBy) -> Tensor:
    """H = blkdiag(diag(p) - p p^T), written out (equation 13)."""
    h = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    for group in members(group_by):
        p = torch.tensor(softmax(previous[group].tolist()), dtype=torch.float64)
        h[np.ix_(group, group)] = torch.diag(p) - torch.outer(p, p)
    return h


def kl_from(previous: Tensor, group_by: GroupBy) -> Callable[[Tensor], Tensor]:
    proximal = SoftmaxKL(as_tensors(previous), group_by)
    return lambda v: proximal(as_tensors(v))


def quadratic(previous: Tensor, group_by: GroupBy, *, weighted: bool) -> Callable[[Tensor], Tensor]:
    proximal = Quadratic(as_tensors(previous), group_by, weighted=weighted)
    return lambda v: proximal(as_tensors(v))


def slope(penalty: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    v = v.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(penalty(v), v)
    return gradient


def scale_of(v: Tensor) -> float:
    return v.abs().max().item()


SCALE = 2.0
MODULES = {n.partition(".lora_")[0]: None for n in as_tensors(state(1))}


def inputs(seed: int, tokens: int = 5) -> dict[str, Tensor]:
    """Inputs [1, tokens, d_in] of every module."""
    random = torch.Generator().manual_seed(seed)
    return {module: torch.randn(1, tokens, 3, dtype=torch.float64, generator=random) for module in MODULES}


def observed(previous: LoraTensors, batch: dict[str, Tensor] | None = None, *, tokens: int = 512) -> OutputKL:
    term = OutputKL(previous, SCALE, tokens=tokens)
    for module, x in (batch or inputs(3)).items():
        term.observe(module, x)
    return term
