"""The formulas of METHODS.md's two-tower section, written out one by one in float64."""

import math

import numpy as np
import pytest
import torch

from trainer.two_tower.contrast import Contrast, FixedWeights, PersonalImportance, centroids_of, clusters_of
from trainer.two_tower.losses import bpr, divergence, info_nce, stability_plasticity, top_share


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum())


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def contrast(x: np.ndarray, z: np.ndarray, w: np.ndarray) -> float:
    """InfoNCE by its definition."""
    terms = []
    for i in range(len(x)):
        own = math.exp(cosine(x[i], z[i]) / 0.5)
        all_of_them = sum(math.exp(cosine(x[i], z[j]) / 0.5) for j in range(len(z)))
        terms.append(-w[i] * math.log(own / all_of_them))
    return sum(terms) / len(terms)


def test_bpr_is_the_mean_log_loss_over_pairs_and_negatives() -> None:
    u, p, n = random(3, 4), random(3, 4, seed=1), random(3, 2, 4, seed=2)
    terms = [math.log(1 + math.exp(float((u[i] @ n[i, k]) - (u[i] @ p[i])))) for i in range(3) for k in range(2)]
    assert bpr(u, p, n).item() == pytest.approx(sum(terms) / 6, rel=1e-5)


def test_info_nce_is_its_definition() -> None:
    x, z, w = random(5, 4), random(5, 4, seed=1), torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0])
    assert info_nce(x, z, w).item() == pytest.approx(contrast(*(t.double().numpy() for t in (x, z, w))), rel=1e-5)
    assert info_nce(x, z).item() == pytest.approx(
        contrast(x.double().numpy(), z.double().numpy(), np.ones(5)), rel=1e-5
    )


def test_info_nce_of_nobody_is_nothing() -> None:
    z = torch.zeros(0, 4, requires_grad=True)
    loss = info_nce(torch.zeros(0, 4), z)
    loss.backward()
    assert loss.item() == 0


def test_divergence_by_pencil() -> None:
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]])
    q = torch.tensor([[0.0, 1.0], [0.5, 0.5], [0.5, 0.5]])
    # last row: middle (3/4, 1/4); 1/2 log(4/3) + 1/2 (1/2 log(2/3) + 1/2 log 2)
    last = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 0.25 * math.log(2)
    assert divergence(p, q).tolist() == pytest.approx([math.log(2), 0.0, last], abs=1e-6)


def test_only_the_top_share_keeps_its_weight() -> None:
    weight = torch.tensor([0.1, 0.9, 0.3, 0.5, 0.2, 0.4, 0.6, 0.7, 0.8, 0.05, 0.15])  # 0.8 quantile of 11: the third
    assert top_share(weight, 0.2).nonzero()[:, 0].tolist() == [1, 7, 8]
    assert top_share(weight, 0.2).max().item() == pytest.approx(0.9)
    assert len(top_share(torch.zeros(0), 0.2)) == 0


def test_plasticity_goes_to_who_changed_most_and_stability_to_who_changed_least() -> None:
    generator = np.random.default_rng(4)
    before, after = generator.dirichlet(np.ones(20), 50), generator.dirichlet(np.ones(20), 50)
    after[:10] = before[:10]
    middle = (before + after) / 2
    change = 0.5 * (before * np.log(before / middle)).sum(axis=1) + 0.5 * (after * np.log(after / middle)).sum(axis=1)
    w1 = 1 / (1 + np.exp(-(change - change.mean())))
    w2 = 1 - w1
    new, old = stability_plasticity(torch.from_numpy(before), torch.from_numpy(after), 0.2)
    np.testing.assert_allclose(new.numpy(), np.where(w1 >= np.quantile(w1, 0.8), w1, 0), rtol=1e-9)
    np.testing.assert_allclose(old.numpy(), np.where(w2 >= np.quantile(w2, 0.8), w2, 0), rtol=1e-9)
    assert set(old.nonzero()[:, 0].tolist()) == set(range(10))
    assert (new > 0).sum() == 10


def test_the_top_share_of_users_who_hardly_moved_is_a_share() -> None:
    generator = np.random.default_rng(5)
    before = generator.dirichlet(np.full(20, 1e6), 300)
    after = before + 1e-5 * (generator.dirichlet(np.ones(20), 300) - 1 / 20)
    own = (torch.from_numpy(interests.astype(np.float32)) for interests in (before, after))
    for weight in stability_plasticity(*own, 0.2):
        assert weight.dtype == torch.float32
        assert (weight > 0).sum() == 60


def test_personal_importance_is_its_definition() -> None:
    centroids, before, current = random(3, 4), random(6, 4, seed=1), random(2, 4, seed=2)
    weigh = PersonalImportance(centroids, before, torch.Generator().manual_seed(0))
    with torch.no_grad():
        weigh.transform.copy_(random(3, 4, 4, seed=3))
    users = torch.tensor([5, 2])
    c, w = centroids.double().numpy(), weigh.transform.detach().double().numpy()
    hidden, out = (t.detach().double().numpy() for t in (weigh.hidden, weigh.out))

    def interests(u: np.ndarray) -> np.ndarray:
        return softmax(np.array([c[k] @ w[k] @ u for k in range(3)]))

    for place, user in enumerate(users.tolist()):
        was, now = interests(before[user].double().numpy()), interests(current[place].double().numpy())
        wanted = math.log1p(math.exp((out @ np.maximum(hidden @ (was - now) ** 2, 0)).item()))
        assert weigh(users, current)[place].item() == pytest.approx(wanted, rel=1e-5)


def test_personal_importance_learns_but_does_not_move_the_user() -> None:
    weigh = PersonalImportance(random(3, 4), random(6, 4, seed=1), torch.Generator().manual_seed(0))
    current = random(2, 4, seed=2).requires_grad_()
    weigh(torch.tensor([5, 2]), current).sum().backward()
    assert current.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (weigh.transform, weigh.hidden, weigh.out))


def test_a_contrast_is_over_users_with_a_teacher_both_with_themselves_and_their_neighbours() -> None:
    own, neighbours, table = random(5, 4), random(5, 4, seed=1), random(5, 4, seed=2)
    members = torch.tensor([True, False, True, True, False])
    weights = torch.tensor([0.5, 9.0, 0.0, 2.0, 9.0])
    part = Contrast(own, neighbours, members, FixedWeights(weights))
    chosen = [0, 3]  # of the batch 0, 1, 3 only these have one
    x, n, z, w = (t[chosen].double().numpy() for t in (own, neighbours, table, weights))
    assert part(torch.tensor([0, 1, 3]), table).item() == pytest.approx(contrast(x, z, w) + contrast(n, z, w), rel=1e-5)


def test_clusters_of_separate_clouds_are_the_clouds_and_centroids_their_means() -> None:
    clouds = torch.arange(20.0).repeat_interleave(4)[:, None] * 100 + random(80, 3)
    cluster = clusters_of(clouds, seed=0)
    assert sorted(torch.bincount(cluster).tolist()) == [4] * 20
    for k in range(20):
        np.testing.assert_allclose(centroids_of(clouds, cluster)[k], clouds[cluster == k].mean(dim=0), rtol=1e-5)


def test_fewer_items_than_clusters_are_a_cluster_each() -> None:
    assert sorted(clusters_of(torch.tensor([[1.0], [5.0], [5.0]]), seed=0).unique().tolist()) == [0, 1]
