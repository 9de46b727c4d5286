"""Softmax-KL and the quadratic forms against their definitions, in value and gradient."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from service.settings import GroupBy
from tests.trainer.proximal_cases import (
    SIZE,
    as_tensors,
    every_grouping,
    kl_from,
    members,
    metric,
    name,
    observed,
    quadratic,
    scale_of,
    slope,
    softmax,
    state,
)
from trainer.proximal import LoraTensors, Orthogonal, OutputKL, Quadratic, SoftmaxKL, softmax_kl


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

    assert kl_from(before, group_by)(now).item() == pytest.approx(expected, rel=1e-12)


def test_softmax_kl_of_two_numbers_by_pencil() -> None:
    one = name(0, "mlp.up_proj", "A")
    half = SoftmaxKL({one: torch.zeros(1, 2)}, GroupBy.TENSOR)

    moved = half({one: torch.tensor([[math.log(3), 0.0]])})  # (3/4, 1/4) against (1/2, 1/2)

    assert moved.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


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
    value = kl_from(before, GroupBy.TENSOR)(now)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, kl_from(before.float(), GroupBy.TENSOR)(now.float()))


@pytest.mark.parametrize("start", [0.0, 300.0])
def test_a_huge_change_stays_finite(start: float) -> None:
    """Also where p is 0 to float32 and q is 1."""
    before = torch.linspace(start, -start, SIZE)
    now = torch.linspace(-300, 300, SIZE).requires_grad_()

    value = kl_from(before, GroupBy.LAYER)(now)
    (gradient,) = torch.autograd.grad(value, now)

    exact = kl_from(before.double(), GroupBy.LAYER)(now.detach().double())
    assert value.item() == pytest.approx(exact.item(), rel=1e-4)  # float32 holds 300 to 3e-5
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda tensors: SoftmaxKL(tensors, GroupBy.TENSOR),
        lambda tensors: Quadratic(tensors, GroupBy.TENSOR, weighted=True),
        lambda tensors: Quadratic(tensors, GroupBy.TENSOR, weighted=False),
        Orthogonal,
        lambda tensors: observed(tensors),
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


@pytest.mark.parametrize(
    "make",
    [
        lambda tensors: SoftmaxKL(tensors, GroupBy.TENSOR),
        lambda tensors: Quadratic(tensors, GroupBy.TENSOR, weighted=False),
        Orthogonal,
        lambda tensors: observed(tensors),
    ],
)
def test_an_adapter_of_other_modules_or_shapes_is_refused(
    make: Callable[[LoraTensors], Callable[[LoraTensors], Tensor]],
) -> None:
    proximal = make(as_tensors(state(1)))
    other = as_tensors(state(2))
    names = list(other)

    for wrong in (
        {n: other[n] for n in names[:-1]},  # an A without its B
        {n: other[n] for n in names[:-2]},  # a module fewer
        {n: t.T[:1] for n, t in other.items()},
    ):
        with pytest.raises(ValueError, match=r"shapes|modules|module it adapts"):
            proximal(wrong)


@every_grouping
@pytest.mark.parametrize("size", [1e-4, 1.0, 30.0])
def test_the_gradient_of_softmax_kl_is_that_of_its_definition(group_by: GroupBy, size: float) -> None:
    """Equation 12 by central differences of the plain formula; GroupBy.RANK is the per-rank KL of figure 2."""
    before = state(1)
    now = before + size * state(2)

    def plain(v: Tensor) -> Tensor:
        log_q, log_p = (torch.cat([torch.log_softmax(x[g], 0) for g in members(group_by)]) for x in (v, before))
        return (log_q.exp() * (log_q - log_p)).sum()

    gradient = slope(kl_from(before, group_by), now)

    step = 1e-6
    basis = step * torch.eye(SIZE, dtype=torch.float64)
    expected = torch.stack([(plain(now + e) - plain(now - e)) / (2 * step) for e in basis])
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-5 * scale_of(expected) + 1e-9)
    torch.testing.assert_close(gradient, slope(plain, now), rtol=0, atol=1e-9 * scale_of(expected) + 1e-15)


@every_grouping
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [1e-4, 1.0, 30.0])
def test_the_quadratic_form_and_its_gradient_are_those_of_h_written_out(
    group_by: GroupBy, weighted: bool, size: float
) -> None:
    """Equation 6 with H = I and with H = blkdiag(diag(p) - p p^T)."""
    before, change = state(1), size * state(2)
    h = metric(before, group_by) if weighted else torch.eye(SIZE, dtype=torch.float64)
    form = quadratic(before, group_by, weighted=weighted)

    assert form(before + change).item() == pytest.approx((change @ h @ change).item() / 2, rel=1e-9)
    torch.testing.assert_close(slope(form, before + change), h @ change, rtol=0, atol=1e-10 * scale_of(change) + 1e-15)


def test_softmax_kl_has_the_first_and_second_derivatives_of_its_value() -> None:
    before = state(1).view(2, -1)
    change = (0.7 * state(2).view(2, -1)).requires_grad_()

    assert torch.autograd.gradcheck(lambda c: softmax_kl(c, before), change)
    assert torch.autograd.gradgradcheck(lambda c: softmax_kl(c, before), change)


@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0])
def test_every_term_is_accurate_in_float32(size: float) -> None:
    """At the size of a real module: float32 parameters, taken as exact, against float64."""
    random = torch.Generator().manual_seed(0)
    a, b = name(0, "mlp.up_proj", "A"), name(0, "mlp.up_proj", "B")
    before = {a: 0.05 * torch.randn(8, 128, generator=random), b: 0.02 * torch.randn(352, 8, generator=random)}
    now = {n: t + size * torch.randn(t.shape, generator=random) for n, t in before.items()}
    x = torch.randn(16, 128, generator=random)

    def output_kl(tensors: LoraTensors) -> OutputKL:
        term = OutputKL(tensors, 2.0)
        term.observe("base_model.model.model.layers.0.mlp.up_proj", x.to(tensors[a].dtype))
        return term

    kinds: list[Callable[[LoraTensors], Callable[[LoraTensors], Tensor]]] = [
        *(lambda t, g=g: SoftmaxKL(t, g) for g in GroupBy),
        *(lambda t, g=g: Quadratic(t, g, weighted=True) for g in GroupBy),
        lambda t: Quadratic(t, GroupBy.TENSOR, weighted=False),
        Orthogonal,
        output_kl,
    ]
    for make in kinds:
        results = []
        for dtype in (torch.float32, torch.float64):
            current = {n: t.to(dtype).requires_grad_() for n, t in now.items()}
            value = make({n: t.to(dtype) for n, t in before.items()})(current)
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(current.values()))])
            results.append((value.item(), gradient))
        (value32, gradient32), (value64, gradient64) = results
        assert value32 == pytest.approx(value64, rel=1e-4)
        assert ((gradient32 - gradient64).norm() / gradient64.norm()).item() < 1e-4
