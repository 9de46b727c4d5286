"""Losses and weights of the two-tower family (METHODS.md, two-tower family)."""

import torch
from torch import Tensor
from torch.nn import functional

TEMPERATURE = 0.5


def bpr(user: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
    """Mean over pairs and negatives of -log sigmoid(u.p - u.n). [n, d], [n, d], [n, k, d] -> scalar."""
    better = (user * positive).sum(dim=-1, keepdim=True)
    worse = torch.einsum("nd,nkd->nk", user, negatives)
    return functional.softplus(worse - better).mean()


def info_nce(x: Tensor, z: Tensor, weight: Tensor | None = None) -> Tensor:
    """mean_i w_i * -log( exp(cos(x_i, z_i) / 0.5) / sum_j exp(cos(x_i, z_j) / 0.5) ). [n, d], [n, d], [n] -> scalar.

    0 when n is 0.
    """
    if not len(x):
        return z.sum()
    similarity = functional.normalize(x, dim=1) @ functional.normalize(z, dim=1).T / TEMPERATURE
    own = torch.arange(len(x), device=x.device)
    losses = functional.cross_entropy(similarity, own, reduction="none")
    return (losses if weight is None else losses * weight).mean()


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of each row in nats, between 0 and log 2. [n, k], [n, k] -> [n]."""
    middle = (p + q) / 2
    return sum_kl(p, middle) / 2 + sum_kl(q, middle) / 2


def sum_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of each row; 0 log 0 = 0."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(dim=1)


def top_share(weight: Tensor, share: float) -> Tensor:
    """`weight` ([n]) where it is at or above its (1 - share) quantile, else 0."""
    if not len(weight):
        return weight
    return torch.where(weight >= torch.quantile(weight, 1 - share), weight, 0.0)


def stability_plasticity(before: Tensor, after: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """PISA's (w1, w2), each [n], from interests before and after the block, both [n, k].

    w1 = sigmoid(JSD - mean JSD) for what is new in a user, w2 = 1 - w1 for what has stayed, each in its top share only.
    In float64: users who moved little differ in digits that float32 does not have at one half.
    """
    change = divergence(before.double(), after.double())
    w1 = torch.sigmoid(change - change.mean())
    return top_share(w1, share).to(before.dtype), top_share(1 - w1, share).to(before.dtype)
