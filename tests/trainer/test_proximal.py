"""The paper's theory of the proximal (sections 4.1, 4.2, appendix B), held in float64."""

import math
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from service.settings import GroupBy
from trainer.proximal import LoraTensors, Quadratic, SoftmaxKL

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


def softmax_kl(previous: Tensor, group_by: GroupBy) -> Callable[[Tensor], Tensor]:
    proximal = SoftmaxKL(as_tensors(previous), group_by)
    return lambda v: proximal(as_tensors(v))


def quadratic(previous: Tensor, group_by: GroupBy, *, weighted: bool) -> Callable[[Tensor], Tensor]:
    proximal = Quadratic(as_tensors(previous), group_by, weighted=weighted)
    return lambda v: proximal(as_tensors(v))


@pytest.mark.parametrize(("group_by", "count"), list(zip(GroupBy, [6, 3, 12, 2], strict=True)))
def test_the_groups_are_as_many_as_one_counts(group_by: GroupBy, count: int) -> None:
    assert list(GroupBy) == ["tensor", "module", "rank", "layer"]
    assert len(members(group_by)) == count


@every_grouping
def test_softmax_kl_is_its_definition(group_by: GroupBy) -> None:
    """Equation 12, term by term."""
    before, now = state(1), state(2)
    expected = 0.0
    for group in members(group_by):
        q, p = softmax(now[group].tolist()), softmax(before[group].tolist())
        expected += sum(qi * math.log(qi / pi) for qi, pi in zip(q, p, strict=True))

    assert softmax_kl(before, group_by)(now).item() == pytest.approx(expected, rel=1e-12)


def test_softmax_kl_of_two_numbers_by_pencil() -> None:
    one = name(0, "mlp.up_proj", "A")
    half = SoftmaxKL({one: torch.zeros(1, 2)}, GroupBy.TENSOR)

    moved = half({one: torch.tensor([[math.log(3), 0.0]])})  # (3/4, 1/4) against (1/2, 1/2)

    assert moved.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


@every_grouping
def test_no_change_costs_nothing_and_pulls_nowhere(group_by: GroupBy) -> None:
    """Proposition 5: K(0) = 0 and grad K(0) = 0, exactly, in float32 too."""
    for dtype in (torch.float64, torch.float32):
        v = state(1).to(dtype).requires_grad_()
        value = softmax_kl(v.detach(), group_by)(v)
        (gradient,) = torch.autograd.grad(value, v)

        assert value.item() == 0
        assert torch.count_nonzero(gradient) == 0


@every_grouping
def test_the_hessian_at_the_previous_state_is_diag_p_minus_p_p(group_by: GroupBy) -> None:
    """Proposition 3, for SoftmaxKL and for the quadratic form that stands for it."""
    v = state(1)
    for proximal in (softmax_kl(v, group_by), quadratic(v, group_by, weighted=True)):
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

    assert softmax_kl(before, group_by)(shifted).item() == pytest.approx(0, abs=1e-12)
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
        return softmax_kl(previous, group_by)(changed).item()

    assert cost(before) == pytest.approx(cost(elsewhere), rel=1e-12)


@every_grouping
def test_the_quadratic_form_is_what_softmax_kl_becomes_as_the_change_vanishes(group_by: GroupBy) -> None:
    """Proposition 3: the ratio tends to 1, its error shrinking with the change."""
    before, direction = state(1), state(2)
    kl, quad = softmax_kl(before, group_by), quadratic(before, group_by, weighted=True)

    errors = [
        abs((kl(before + size * direction) / quad(before + size * direction)).item() - 1)
        for size in (1e-1, 1e-2, 1e-3, 1e-4)
    ]

    assert errors[0] < 0.2
    assert all(later < earlier / 5 for earlier, later in pairwise(errors))


def test_the_unweighted_form_is_half_the_squared_distance_however_it_is_grouped() -> None:
    before, now = state(1), state(2)
    expected = ((now - before) ** 2).sum().item() / 2

    for group_by in GroupBy:
        assert quadratic(before, group_by, weighted=False)(now).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [1e-1, 1e-2, 1e-3, 1e-4])
def test_float32_is_accurate_for_a_tiny_change_of_a_large_tensor(size: float) -> None:
    """METHODS.md, known trap: value and gradient are far below the parameters' own rounding."""
    random = torch.Generator().manual_seed(0)
    before = 0.05 * torch.randn(8, 2048, generator=random)
    now = (before + size * torch.randn(8, 2048, generator=random)).requires_grad_()
    exact_now = now.detach().double().requires_grad_()
    one = name(0, "mlp.up_proj", "A")

    exact = SoftmaxKL({one: before.double()}, GroupBy.TENSOR)({one: exact_now})
    value = SoftmaxKL({one: before}, GroupBy.TENSOR)({one: now})

    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=1e-4)
    (gradient,), (exact_gradient,) = torch.autograd.grad(value, now), torch.autograd.grad(exact, exact_now)
    assert ((gradient - exact_gradient).norm() / exact_gradient.norm()).item() < 0.01


def test_bfloat16_parameters_are_penalised_in_float32() -> None:
    before, now = state(1).bfloat16(), state(2).bfloat16()

    for weighted in (True, False):
        value = quadratic(before, GroupBy.TENSOR, weighted=weighted)(now)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, quadratic(before.float(), GroupBy.TENSOR, weighted=weighted)(now.float()))
    value = softmax_kl(before, GroupBy.TENSOR)(now)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, softmax_kl(before.float(), GroupBy.TENSOR)(now.float()))


def test_a_huge_change_stays_finite() -> None:
    before = torch.zeros(SIZE, dtype=torch.float32)
    now = torch.linspace(-300, 300, SIZE).requires_grad_()

    value = softmax_kl(before, GroupBy.TENSOR)(now)
    (gradient,) = torch.autograd.grad(value, now)

    assert value.item() == pytest.approx(softmax_kl(before.double(), GroupBy.TENSOR)(now.detach().double()).item())
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda tensors: SoftmaxKL(tensors, GroupBy.TENSOR),
        lambda tensors: Quadratic(tensors, GroupBy.TENSOR, weighted=True),
        lambda tensors: Quadratic(tensors, GroupBy.TENSOR, weighted=False),
    ],
)
def test_the_previous_state_stays_where_it_was_when_the_parameters_it_was_taken_from_move(
    make: Callable[[LoraTensors], Callable[[LoraTensors], Tensor]],
) -> None:
    live = {n: torch.nn.Parameter(t.clone()) for n, t in as_tensors(state(1)).items()}
    proximal = make(live)
    with torch.no_grad():
        for parameter, moved in zip(live.values(), as_tensors(state(2)).values(), strict=True):
            parameter.copy_(moved)

    value = proximal(live)

    torch.testing.assert_close(value.detach(), make(as_tensors(state(1)))(as_tensors(state(2))))
    gradients = torch.autograd.grad(value, list(live.values()))
    assert all(torch.count_nonzero(g) for g in gradients)


def test_an_adapter_of_other_shapes_is_refused() -> None:
    proximal = SoftmaxKL(as_tensors(state(1)), GroupBy.TENSOR)
    fewer = dict(list(as_tensors(state(2)).items())[:-1])

    with pytest.raises(ValueError, match="shapes"):
        proximal(fewer)
    with pytest.raises(ValueError, match="shapes"):
        proximal({n: t.T[:1] for n, t in as_tensors(state(2)).items()})


# Proposition 1 and corollary 2: a quadratic loss with its own optimum, and the proximal as written in this package.

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

    kl = minimise(softmax_kl(before, GroupBy.TENSOR), sigma, optimum, before)
    quad = minimise(quadratic(before, GroupBy.TENSOR, weighted=True), sigma, optimum, before)

    assert (kl - quad).norm() < 1e-2 * (quad - before).norm()
