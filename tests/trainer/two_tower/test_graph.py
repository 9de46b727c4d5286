"""Propagation against the dense matrix in float64."""

import numpy as np
import torch

from tests.trainer.two_tower.worlds import CPU
from trainer.two_tower import Positives
from trainer.two_tower.graph import Graph
from trainer.two_tower.lightgcn import draw_negatives

USERS, ITEMS = 7, 9


def pairs() -> Positives:
    """30 pairs with repeats; user 6 and item 8 have none."""
    random = np.random.default_rng(0)
    return Positives(random.integers(0, USERS - 1, 30), random.integers(0, ITEMS - 1, 30))


def dense(positives: Positives) -> np.ndarray:
    matrix = np.zeros((USERS + ITEMS, USERS + ITEMS))
    for u, i in zip(positives.user, positives.item, strict=True):
        matrix[u, USERS + i] = matrix[USERS + i, u] = 1
    degree = matrix.sum(axis=1)
    scale = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1)), 0)
    return matrix * scale[:, None] * scale[None, :]


def test_propagation_is_the_mean_of_the_powers_of_the_normalised_adjacency() -> None:
    graph = Graph.of(pairs(), USERS, ITEMS, CPU)
    start = torch.randn(USERS + ITEMS, 5, generator=torch.Generator().manual_seed(0))
    user, item = graph.propagate(start[:USERS], start[USERS:], 2)
    matrix = dense(pairs())
    wanted = (np.eye(USERS + ITEMS) + matrix + matrix @ matrix) @ start.double().numpy() / 3
    np.testing.assert_allclose(torch.cat([user, item]).numpy(), wanted, atol=1e-6)


def test_the_gradient_of_propagation_is_that_of_the_dense_product() -> None:
    graph = Graph.of(pairs(), USERS, ITEMS, CPU)
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(USERS + ITEMS, 5, generator=generator, requires_grad=True)
    weight = torch.randn(USERS + ITEMS, 5, generator=generator)
    (torch.cat(graph.propagate(start[:USERS], start[USERS:], 2)) * weight).sum().backward()
    matrix = dense(pairs())
    wanted = (np.eye(USERS + ITEMS) + matrix + matrix @ matrix).T @ weight.double().numpy() / 3
    assert start.grad is not None
    np.testing.assert_allclose(start.grad.numpy(), wanted, atol=1e-6)


def test_users_and_items_without_a_pair_are_known_as_such() -> None:
    graph = Graph.of(pairs(), USERS, ITEMS, CPU)
    assert graph.has_user().tolist() == [u in pairs().user for u in range(USERS)]
    assert graph.has_item().tolist() == [i in pairs().item for i in range(ITEMS)]
    assert not graph.has_user()[6]
    assert not graph.has_item()[8]


def test_neighbour_means_count_a_repeated_pair_once() -> None:
    graph = Graph.of(Positives(np.array([0, 0, 0, 2]), np.array([1, 1, 2, 0])), 3, 3, CPU)
    item = torch.tensor([[10.0], [1.0], [3.0]])
    assert graph.neighbour_means(item).tolist() == [[2.0], [0.0], [10.0]]


def test_negatives_are_of_the_given_rows_and_never_a_pair_of_the_user() -> None:
    graph = Graph.of(Positives(np.array([0, 0, 1]), np.array([1, 2, 5])), 2, 20, CPU)
    user, rows = torch.tensor([0, 1]).repeat(300), torch.arange(1, 18)
    drawn = draw_negatives(graph, user, rows, 4, torch.Generator().manual_seed(0))
    assert set(drawn[user == 0].flatten().tolist()) == set(range(1, 18)) - {1, 2}
    assert set(drawn[user == 1].flatten().tolist()) == set(range(1, 18)) - {5}


def test_drawing_ends_for_a_user_who_has_taken_everything() -> None:
    graph = Graph.of(Positives(np.array([0, 0]), np.array([0, 1])), 1, 2, CPU)
    assert draw_negatives(graph, graph.user, torch.tensor([0, 1]), 4, torch.Generator().manual_seed(0)).shape == (2, 4)
