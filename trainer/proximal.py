"""Proximal terms that hold an adapter near its previous state (paper, section 4; METHODS.md, regularisers).

All in float32 or wider: the softmax-KL of a whole tensor is of the order of 1e-5, below bfloat16's rounding noise.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from service.settings import GroupBy

LoraTensors = Mapping[str, Tensor]  # PEFT name -> lora_A [r, d_in] or lora_B [d_out, r]


def groups(tensors: LoraTensors, group_by: GroupBy) -> list[Tensor]:
    """The vectors v^g, each [n_g], over which one softmax runs; gradients flow through.

    tensor: every A and every B; module: A and B of one module together; rank: every row of A and column of B;
    layer: all tensors of one transformer layer.
    """
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in sorted(tensors.items()):
        tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
        if group_by is GroupBy.RANK:
            rows = tensor if ".lora_A." in name else tensor.T
            parts |= {f"{name}[{i}]": [row] for i, row in enumerate(rows)}
            continue
        key = name
        if group_by is GroupBy.MODULE:
            key = re.sub(r"\.lora_[AB]\..*", "", name)
        elif group_by is GroupBy.LAYER:
            found = re.search(r"\.layers\.(\d+)\.", name)
            key = found[1] if found else name
        parts.setdefault(key, []).append(tensor.reshape(-1))
    return [torch.cat(vectors) if len(vectors) > 1 else vectors[0] for vectors in parts.values()]


class SoftmaxKL:
    """sum_g KL(softmax(v_t^g) || softmax(v_{t-1}^g)), paper eq. 12; the previous state is fixed when this is made."""

    def __init__(self, previous: LoraTensors, group_by: GroupBy) -> None:
        self._group_by = group_by
        fixed = {name: tensor.detach() for name, tensor in previous.items()}
        self._previous = [torch.log_softmax(m, dim=-1) for m in _by_length(groups(fixed, group_by))]

    def __call__(self, current: LoraTensors) -> Tensor:
        """A scalar. Raises ValueError when `current` has other groups than the previous state."""
        now = [torch.log_softmax(m, dim=-1) for m in _by_length(groups(current, self._group_by))]
        if [m.shape for m in now] != [m.shape for m in self._previous]:
            raise ValueError("the current adapter's shapes are not those of the previous one")
        return torch.stack([_kl(m, p).sum() for m, p in zip(now, self._previous, strict=True)]).sum()


def _kl(now: Tensor, before: Tensor) -> Tensor:
    """Terms q log(q / p) - q + p of KL(q || p) from log q and log p; q and p sum to 1, so the addition changes nothing.

    Without it the sum's second-order value is left over when first-order terms cancel: at a change of 1e-3 float32 has
    no right digit. With it every term is of second order and at least 0, and the gradient at q = p is exactly 0.
    """
    change = now - before
    small = change.clamp(max=1.0)  # beyond it exp could overflow, and the plain form is exact enough
    near = before.exp() * (small * small.exp() - small.expm1())
    far = now.exp() * (change - 1) + before.exp()
    return torch.where(change < 1, near, far)


class Quadratic:
    """1/2 sum_g (v_t - v_{t-1})^T H (v_t - v_{t-1}), paper eq. 6, without materialising H.

    weighted = False: H = I (plain L2). weighted = True: H = diag(p) - p p^T with p = softmax(v_{t-1}^g), the local form
    of SoftmaxKL (proposition 3), which is half the p-weighted variance of the change (corollary 4).
    """

    def __init__(self, previous: LoraTensors, group_by: GroupBy, *, weighted: bool) -> None:
        self._group_by, self._weighted = group_by, weighted
        self._previous = groups({name: tensor.detach().clone() for name, tensor in previous.items()}, group_by)

    def __call__(self, current: LoraTensors) -> Tensor:
        """A scalar."""
        terms = []
        for now, before in zip(groups(current, self._group_by), self._previous, strict=True):
            change = now - before
            if self._weighted:
                p = torch.softmax(before, dim=-1)
                terms.append((p * (change - (p * change).sum()) ** 2).sum() / 2)  # centred: nothing cancels
            else:
                terms.append((change**2).sum() / 2)
        return torch.stack(terms).sum()


def _by_length(vectors: list[Tensor]) -> list[Tensor]:
    """Vectors of equal length stacked to [count, n]: a few large kernels instead of hundreds of small ones."""
    by_length: dict[int, list[Tensor]] = {}
    for vector in vectors:
        by_length.setdefault(len(vector), []).append(vector)
    return [torch.stack(same) for same in by_length.values()]
