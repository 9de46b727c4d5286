"""The paper's theory of the proximal (sections 4.1, 4.2, appendix B), held in float64."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from service.settings import GroupBy
from tests.trainer.proximal_cases import SIZE, every_grouping, kl_from, members, metric, quadratic, softmax, state


@every_grouping
def test_no_change_costs_nothing_and_pulls_nowhere(group_by: GroupBy) -> None:
    """Proposition 5: K(0) = 0 and grad K(0) = 0, exactly, in float32 too."""
    for dtype in (torch.float64, torch.float32):
        v = state(1).to(dtype).requires_grad_()
        value = kl_from(v.detach(), group_by)(v)
        (gradient,) = torch.autograd.grad(value, v)

        assert value.item() == 0
        assert torch.count_nonzero(gradient) == 0


@every_grouping
def test_the_hessian_at_the_previous_state_is_diag_p_minus_p_p(group_by: GroupBy) -> None:
    """Proposition 3, for SoftmaxKL and for the quadratic form that stands for it."""
    v = state(1)
    for proximal in (kl_from(v, group_by), quadratic(v, group_by, weighted=True)):
        hessian = torch.autograd.functional.hessian(proximal, v)
        torch.testing.assert_close(hessian, metric(v, group_by), rtol=0, atol=1e-12)


@every_grouping
def test_the_quadratic_form_is_half_the_p_weighted_variance_of_the_change(group_by: GroupBy) -> None:
    """Corollary 4."""
    before, change = state(1), state(2)
    variance = 0.0
    for group in members(group_by):
        p, delta = softmax(before[group].tolist()), change[group].tolist()
        mean = sum(pi * d for pi, d in zip(p, delta, strict=True))
        variance += sum(pi * (d - mean) ** 2 for pi, d in zip(p, delta, strict=True))

    value = quadratic(before, group_by, weighted=True)(before + change)

    assert value.item() == pytest.approx(variance / 2, rel=1e-12)
    assert value.item() == pytest.approx((change @ metric(before, group_by) @ change).item() / 2, rel=1e-12)


@every_grouping
def test_a_shift_of_a_whole_group_costs_nothing(group_by: GroupBy) -> None:
    """Corollary 4: only reshuffling within a group is held back."""
    before = state(1)
    shifted = before.clone()
    for i, group in enumerate(members(group_by)):
        shifted[group] += (-1) ** i * (0.5 + i)

    assert kl_from(before, group_by)(shifted).item() == pytest.approx(0, abs=1e-12)
    assert quadratic(before, group_by, weighted=True)(shifted).item() == pytest.approx(0, abs=1e-12)
    assert quadratic(before, group_by, weighted=False)(shifted).item() > 1


@every_grouping
def test_a_change_in_one_group_costs_the_same_whatever_the_others_are(group_by: GroupBy) -> None:
    """The metric is block-diagonal (equation 6)."""
    before, elsewhere = state(1), state(1)
    first = members(group_by)[0]
    rest = [i for group in members(group_by)[1:] for i in group]
    elsewhere[rest] = state(3)[rest]

    def cost(previous: Tensor) -> float:
        changed = previous.clone()
        changed[first] += state(2)[first]
        return kl_from(previous, group_by)(changed).item()

    assert cost(before) == pytest.approx(cost(elsewhere), rel=1e-12)


@every_grouping
def test_the_quadratic_form_is_what_softmax_kl_becomes_as_the_change_vanishes(group_by: GroupBy) -> None:
    """Proposition 3: the ratio tends to 1, its error shrinking with the change."""
    before, direction = state(1), state(2)
    kl, quad = kl_from(before, group_by), quadratic(before, group_by, weighted=True)

    errors = [
        abs((kl(before + size * direction) / quad(before + size * direction)).item() - 1)
        for size in (1e-1, 1e-2, 1e-3, 1e-4)
    ]

    assert errors[0] < 0.2
    assert all(later < earlier / 5 for earlier, later in pairwise(errors))


WEIGHT = 3.0


def curvature(rank: int) -> Tensor:
    """Sigma = E[phi phi^T] over `rank` examples, with eigenvalues of the order of 1."""
    features = torch.randn(rank, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    return features.T @ features / rank + (1e-2 * torch.eye(SIZE, dtype=torch.float64) if rank >= SIZE else 0)


def minimise(penalty: Callable[[Tensor], Tensor], sigma: Tensor, optimum: Tensor, start: Tensor) -> Tensor:
    """argmin of equation 9, by L-BFGS from the previous state."""
    v = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [v], max_iter=2_000, history_size=50, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = (v - optimum) @ sigma @ (v - optimum) / 2 + WEIGHT * penalty(v)
        value.backward()
        return value

    optimiser.step(loss)
    return v.detach()


def test_l2_interpolates_along_the_eigenvectors_of_the_data() -> None:
    """Corollary 2, with directions that the data do not support at all."""
    sigma, optimum, before = curvature(rank=20), state(4), state(5)

    v = minimise(quadratic(before, GroupBy.TENSOR, weighted=False), sigma, optimum, before)

    values, vectors = scipy.linalg.eigh(sigma.numpy())
    rho = np.maximum(values, 0)
    share = rho / (rho + WEIGHT)
    expected = share * (vectors.T @ optimum.numpy()) + (1 - share) * (vectors.T @ before.numpy())
    np.testing.assert_allclose(vectors.T @ v.numpy(), expected, atol=1e-7)
    unsupported = vectors[:, rho < 1e-9]
    assert unsupported.shape[1] == SIZE - 20
    np.testing.assert_allclose(unsupported.T @ v.numpy(), unsupported.T @ before.numpy(), atol=1e-7)


@every_grouping
def test_the_weighted_form_interpolates_along_generalised_eigenvectors(group_by: GroupBy) -> None:
    """Proposition 1 with H = blkdiag(diag(p) - p p^T); where H is flat the data alone decide (appendix B.2, iii)."""
    sigma, optimum, before = curvature(rank=60), state(4), state(5)

    v = minimise(quadratic(before, group_by, weighted=True), sigma, optimum, before)

    h = metric(before, group_by).numpy()
    # H is singular, so the pairs come from H q = (1 / rho) Sigma q; 1 / rho = 0 spans the kernel of H.
    inverse, q = scipy.linalg.eigh(h, sigma.numpy())
    held = inverse > 1e-10
    assert np.count_nonzero(~held) == len(members(group_by))  # one free shift in each group
    rho = 1 / inverse[held]
    share = rho / (rho + WEIGHT)
    now, best, old = (q[:, held].T @ h @ x.numpy() for x in (v, optimum, before))
    np.testing.assert_allclose(now, share * best + (1 - share) * old, atol=1e-7)
    free = q[:, ~held].T @ sigma.numpy()
    np.testing.assert_allclose(free @ v.numpy(), free @ optimum.numpy(), atol=1e-7)


def test_a_softmax_kl_minimum_near_the_previous_state_is_that_of_its_quadratic_form() -> None:
    """Why proposition 1 speaks about PESO: a nearby optimum, both penalties, one answer to second order."""
    sigma, before = curvature(rank=60), state(5)
    optimum = before + 1e-3 * state(4)

    kl = minimise(kl_from(before, GroupBy.TENSOR), sigma, optimum, before)
    quad = minimise(quadratic(before, GroupBy.TENSOR, weighted=True), sigma, optimum, before)

    assert (kl - quad).norm() < 1e-2 * (quad - before).norm()
