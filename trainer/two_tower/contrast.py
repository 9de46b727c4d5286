"""What holds a user's embedding near what it was, or pulls it to what it is about to be (METHODS.md, two-tower family).

METHODS.md leaves open, and this is chosen here: a user has a past from the first training pair on, whichever block
that was in; u_{t-1} and the mean over N_{t-1}(u) are of the last block that had the user; a batch contrasts each of its
users once; clusters are k-means of i_{t-1}, and the forward model's centroids are its means over the same clusters, so
that interests before and after are over the same 20 things.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from trainer.two_tower.losses import info_nce

CLUSTERS = 20
_HIDDEN = 50  # of PIW's network


class Weigh(Protocol):
    """How much each user counts."""

    def __call__(self, users: Tensor, current: Tensor) -> Tensor:
        """users: int64 [n]; current: their embeddings now [n, d] -> float32 [n], at least 0."""
        ...


class Contrast:
    """InfoNCE(own, u) + InfoNCE(neighbours, u), weighted, over those of the batch's users who have a teacher."""

    def __init__(self, own: Tensor, neighbours: Tensor, members: Tensor, weigh: Weigh | None = None) -> None:
        """own, neighbours: the teacher's [users, d]; members: bool [users], who has one."""
        self._own, self._neighbours, self._members, self._weigh = own, neighbours, members, weigh

    def __call__(self, users: Tensor, table: Tensor) -> Tensor:
        """users: int64 [n], distinct; table: [users, d], now -> scalar."""
        users = users[self._members[users]]
        current = table[users]
        weight = self._weigh(users, current) if self._weigh is not None else None
        return info_nce(self._own[users], current, weight) + info_nce(self._neighbours[users], current, weight)


class FixedWeights:
    """One weight a user, [users]."""

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights

    def __call__(self, users: Tensor, current: Tensor) -> Tensor:
        return self._weights[users]


class PersonalImportance(nn.Module):
    """PIW: w_u = softplus(MLP 20-50-1((G_{t-1} - G_t)^2)), G_k = softmax_k(c_k^T W_k u); learnt with the embeddings.

    W_k starts as the identity. The weight sees u but does not move it: else u would learn to lower its own weight.
    """

    def __init__(self, centroids: Tensor, before: Tensor, generator: torch.Generator) -> None:
        """centroids: [k, d] of i_{t-1}; before: u_{t-1} [users, d]."""
        super().__init__()
        clusters, dimensions = centroids.shape
        self._centroids, self._before = centroids, before
        self.transform = nn.Parameter(torch.eye(dimensions, device=centroids.device).repeat(clusters, 1, 1))
        self.hidden = nn.Parameter(_uniform(_HIDDEN, clusters, generator).to(centroids.device))
        self.hidden_bias = nn.Parameter(torch.zeros(_HIDDEN, device=centroids.device))
        self.out = nn.Parameter(_uniform(1, _HIDDEN, generator).to(centroids.device))
        self.out_bias = nn.Parameter(torch.zeros(1, device=centroids.device))

    def interests(self, user: Tensor) -> Tensor:
        """G, [n, k], rows sum to 1. user: [n, d]."""
        affinity = torch.einsum("kd,kde,ne->nk", self._centroids, self.transform, user)
        return torch.softmax(affinity, dim=1)

    def forward(self, users: Tensor, current: Tensor) -> Tensor:
        """As Weigh says."""
        change = (self.interests(self._before[users]) - self.interests(current.detach())) ** 2
        hidden = nn.functional.relu(nn.functional.linear(change, self.hidden, self.hidden_bias))
        weight: Tensor = nn.functional.softplus(nn.functional.linear(hidden, self.out, self.out_bias))[:, 0]
        return weight


class Total:
    """The sum of several."""

    def __init__(self, parts: Sequence[Contrast]) -> None:
        self._parts = parts

    def __call__(self, users: Tensor, table: Tensor) -> Tensor:
        return torch.stack([part(users, table) for part in self._parts]).sum()


def clusters_of(item: Tensor, seed: int) -> Tensor:
    """int64 [n]: k-means cluster of each embedding, at most 20 clusters, numbered from 0 without gaps."""
    from sklearn.cluster import KMeans  # a second to import, and only two methods need it

    count = min(CLUSTERS, len(torch.unique(item, dim=0)))
    labels = KMeans(count, n_init=1, random_state=seed).fit_predict(item.detach().cpu().numpy())
    numbered = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return torch.from_numpy(numbered).to(item.device)


def centroids_of(item: Tensor, cluster: Tensor) -> Tensor:
    """[k, d]: mean embedding of each cluster."""
    count = torch.bincount(cluster)
    total = item.new_zeros(len(count), item.shape[1]).index_add_(0, cluster, item)
    return total / count[:, None]


def _uniform(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """As torch initialises a linear layer, from an own generator."""
    return (torch.rand(rows, columns, generator=generator) * 2 - 1) / math.sqrt(columns)
