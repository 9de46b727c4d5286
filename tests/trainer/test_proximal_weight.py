"""Lambda by the ratio of gradients after one step."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from service.settings import GroupBy
from tests.trainer.proximal_cases import (
    as_tensors,
    inputs,
    name,
    observed,
    slope,
    state,
)
from trainer.proximal import LoraTensors, Orthogonal, Quadratic, SoftmaxKL, first_step_weight


def with_gradients(v: Tensor, gradient: Tensor) -> dict[str, torch.nn.Parameter]:
    parameters = {n: torch.nn.Parameter(t.clone()) for n, t in as_tensors(v).items()}
    for parameter, own in zip(parameters.values(), as_tensors(gradient).values(), strict=True):
        parameter.grad = own.clone()
    return parameters


TERMS: list[Callable[[LoraTensors], Callable[[LoraTensors], Tensor]]] = [
    *(lambda tensors, g=g: SoftmaxKL(tensors, g) for g in GroupBy),
    lambda tensors: Quadratic(tensors, GroupBy.MODULE, weighted=True),
    lambda tensors: Quadratic(tensors, GroupBy.MODULE, weighted=False),
    Orthogonal,
    lambda tensors: observed(tensors, {m: x.to(next(iter(tensors.values())).dtype) for m, x in inputs(3).items()}),
]


@pytest.mark.parametrize("make", TERMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weight_gives_the_ratio_that_was_asked_for_after_one_step(
    make: Callable[[LoraTensors], Callable[[LoraTensors], Tensor]], dtype: torch.dtype
) -> None:
    start, gradient, rate, ratio = state(1).to(dtype), state(2, 0.01).to(dtype), 2e-4, 0.1
    proximal = make(as_tensors(start))
    parameters = with_gradients(start, gradient)

    weight = first_step_weight(lambda: proximal(parameters), list(parameters.values()), rate, ratio)

    there = start - rate * gradient.sign()
    own = slope(lambda v: weight * proximal(as_tensors(v)), there)
    assert (own.norm() / gradient.norm()).item() == pytest.approx(ratio, rel=1e-4)


def test_the_displacement_is_adams_first_step() -> None:
    start, gradient, rate = state(1), state(2, 0.01), 1e-3
    parameters = with_gradients(start, gradient)
    seen: list[Tensor] = []
    proximal = Quadratic(as_tensors(start), GroupBy.TENSOR, weighted=False)

    def penalty() -> Tensor:
        seen.append(torch.cat([p.detach().flatten() for p in parameters.values()]))
        return proximal(parameters)

    first_step_weight(penalty, list(parameters.values()), rate, 0.1)
    torch.optim.Adam(parameters.values(), lr=rate).step()

    assert len(seen) == 1
    torch.testing.assert_close(
        seen[0], torch.cat([p.detach().flatten() for p in parameters.values()]), rtol=0, atol=1e-6
    )


def test_parameters_and_gradients_are_left_bit_for_bit_even_when_the_penalty_fails() -> None:
    start, gradient = state(1, 1e-5).float(), state(2, 1e-3).float()  # so small that a step there and back loses bits
    proximal = SoftmaxKL(as_tensors(start), GroupBy.TENSOR)
    parameters = with_gradients(start, gradient)

    def failing() -> Tensor:
        raise ZeroDivisionError

    first_step_weight(lambda: proximal(parameters), list(parameters.values()), 2e-4, 0.1)
    with pytest.raises(ZeroDivisionError):
        first_step_weight(failing, list(parameters.values()), 2e-4, 0.1)

    now = torch.cat([p.detach().flatten() for p in parameters.values()])
    kept = torch.cat([p.grad.flatten() for p in parameters.values() if p.grad is not None])
    assert torch.equal(now, start)
    assert torch.equal(kept, gradient)


def test_the_weight_grows_with_the_ratio_and_the_data_gradient_and_falls_with_the_rate() -> None:
    start, gradient = state(1), state(2)
    proximal = SoftmaxKL(as_tensors(start), GroupBy.TENSOR)

    def weight(times: float, rate: float, ratio: float) -> float:
        parameters = with_gradients(start, times * gradient)
        return first_step_weight(lambda: proximal(parameters), list(parameters.values()), rate, ratio)

    one = weight(1, 1e-5, 0.1)
    assert weight(1, 1e-5, 0.3) == pytest.approx(3 * one)
    assert weight(5, 1e-5, 0.1) == pytest.approx(5 * one)
    assert weight(1, 2e-5, 0.1) == pytest.approx(one / 2, rel=1e-3)


@pytest.mark.parametrize("rank", [2, 8])
@pytest.mark.parametrize("width", [16, 64])
def test_the_weight_scales_with_the_size_of_a_group_and_not_with_how_many_there_are(rank: int, width: int) -> None:
    """By pencil: p = 1/n and a balanced step e give a gradient e/n per entry, so lambda = ratio |g_ce| n / e.

    n is the size of one group: rank * width for the softmax of a tensor, width for that of a rank, and 1 for plain L2.
    """
    a, b = name(0, "mlp.up_proj", "A"), name(0, "mlp.up_proj", "B")
    before = {a: torch.zeros(rank, width, dtype=torch.float64), b: torch.zeros(width, rank, dtype=torch.float64)}
    parameters = {n: torch.nn.Parameter(t.clone()) for n, t in before.items()}
    signs = 1 - 2 * ((torch.arange(width)[:, None] + torch.arange(rank)) % 2).double()
    parameters[a].grad, parameters[b].grad = 0.3 * signs.T, 0.3 * signs
    rate, ratio = 1e-5, 0.1

    def weight(proximal: Callable[[LoraTensors], Tensor]) -> float:
        return first_step_weight(lambda: proximal(parameters), list(parameters.values()), rate, ratio)

    for group_by, size in ((GroupBy.TENSOR, rank * width), (GroupBy.MODULE, 2 * rank * width), (GroupBy.RANK, width)):
        assert weight(SoftmaxKL(before, group_by)) == pytest.approx(ratio * 0.3 * size / rate, rel=1e-4)
        assert weight(Quadratic(before, group_by, weighted=True)) == pytest.approx(ratio * 0.3 * size / rate)
    assert weight(Quadratic(before, GroupBy.TENSOR, weighted=False)) == pytest.approx(ratio * 0.3 / rate)


def test_without_a_ratio_a_data_gradient_or_a_pull_there_is_no_weight() -> None:
    start = state(1)
    proximal = SoftmaxKL(as_tensors(start), GroupBy.TENSOR)

    def weight(gradient: Tensor, rate: float = 1e-3, ratio: float = 0.1) -> float:
        parameters = with_gradients(start, gradient)
        return first_step_weight(lambda: proximal(parameters), list(parameters.values()), rate, ratio)

    assert weight(state(2)) > 0
    assert weight(state(2), ratio=0.0) == 0
    assert weight(0 * state(2)) == 0
    assert weight(state(2), rate=0.0) == 0
    untouched = {n: torch.nn.Parameter(t.clone()) for n, t in as_tensors(start).items()}
    assert first_step_weight(lambda: proximal(untouched), list(untouched.values()), 1e-3, 0.1) == 0


def test_a_parameter_without_a_data_gradient_stays_and_is_not_counted_as_moved() -> None:
    """B = 0 gives A no gradient at the first step."""
    start = as_tensors(state(1))
    l2 = Quadratic(start, GroupBy.TENSOR, weighted=False)
    parameters = {n: torch.nn.Parameter(t.clone()) for n, t in start.items()}
    only = parameters[name(1, "mlp.up_proj", "B")]
    only.grad = torch.full_like(only, 0.5)

    weight = first_step_weight(lambda: l2(parameters), list(parameters.values()), 1e-3, 0.1)

    assert weight == pytest.approx(0.1 * 0.5 / 1e-3)


def test_a_negative_ratio_and_gradients_that_are_not_finite_are_refused() -> None:
    start = state(1)
    l2 = Quadratic(as_tensors(start), GroupBy.TENSOR, weighted=False)
    parameters = with_gradients(start, state(2))
    one = parameters[name(1, "mlp.up_proj", "B")]

    with pytest.raises(ValueError, match="ratio"):
        first_step_weight(lambda: l2(parameters), list(parameters.values()), 1e-3, -0.1)
    one.grad = torch.full_like(one, math.inf)
    with pytest.raises(ValueError, match="finite"):
        first_step_weight(lambda: l2(parameters), list(parameters.values()), 1e-3, 0.1)
