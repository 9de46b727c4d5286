"""LightGCN's propagation over one block's training pairs (He et al., SIGIR 2020).

Written here because no library fits: torch_geometric brings an HTTP client and templates for the thirty lines below and
gathers edge by edge, which is slower on a CPU than a sparse product; recbole pins an old torch and brings ray.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.two_tower.base import Positives


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """Distinct pairs of one block, in order of user, then item.

    user, item: int64 [edges]. adjacency: sparse (CSR) float32 [users + items, users + items], the
    symmetric D^-1/2 A D^-1/2, items after users; a user or item without a pair has an empty row.
    """

    user: Tensor
    item: Tensor
    users: int
    items: int
    adjacency: Tensor

    @classmethod
    def of(cls, positives: Positives, users: int, items: int, device: torch.device) -> "Graph":
        """From pairs that may repeat."""
        pairs = torch.from_numpy(np.unique(positives.user * items + positives.item)).to(device)
        user, item = pairs // items, pairs % items
        nodes = torch.cat([user, item + users])
        degree = torch.bincount(nodes, minlength=users + items).float()
        value = (degree[user] * degree[item + users]).rsqrt()
        ends = torch.stack([nodes, torch.cat([item + users, user])])
        size = (users + items, users + items)
        adjacency = torch.sparse_coo_tensor(ends, torch.cat([value, value]), size, check_invariants=True)
        return cls(user, item, users, items, _compressed(adjacency.coalesce()))

    def has_user(self) -> Tensor:
        """bool [users]: who has a pair."""
        return torch.bincount(self.user, minlength=self.users) > 0

    def has_item(self) -> Tensor:
        """bool [items]: what has a pair."""
        return torch.bincount(self.item, minlength=self.items) > 0

    def propagate(self, user: Tensor, item: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        """Mean of layers 0..layers, [users, d] and [items, d]; layer l + 1 = adjacency @ layer l."""
        layer = torch.cat([user, item])
        total = layer
        for _ in range(layers):
            layer = _SymmetricProduct.apply(self.adjacency, layer)  # type: ignore[no-untyped-call]  # torch
            total = total + layer
        mean: Tensor = total / (layers + 1)
        return mean[: self.users], mean[self.users :]

    def neighbour_means(self, item: Tensor) -> Tensor:
        """[users, d]: mean of the item embeddings ([items, d]) over each user's pairs, 0 without one."""
        total = item.new_zeros(self.users, item.shape[1]).index_add_(0, self.user, item[self.item])
        count = torch.bincount(self.user, minlength=self.users)
        return total / count.clamp(min=1)[:, None]


class _SymmetricProduct(torch.autograd.Function):
    """matrix @ dense for a symmetric matrix: its own transpose, so that the gradient needs none to be made."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, dense: Tensor) -> Tensor:
        ctx.matrix = matrix
        product: Tensor = torch.sparse.mm(matrix, dense)
        return product

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, torch.sparse.mm(ctx.matrix, gradient)


def _compressed(matrix: Tensor) -> Tensor:
    """As CSR: its product is three times as fast as that of coordinates on a CPU."""
    with warnings.catch_warnings():
        # Once a process torch calls CSR beta; only its product is used, which the tests hold to a dense one.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state", category=UserWarning)
        return matrix.to_sparse_csr()
