"""The layer that computes with W + s B A: the plain formula's outputs and gradients, in every precision."""

import pytest
import torch
from torch import Tensor, nn

from trainer.lora import AdaptedLinear

SCALE = 1.7
Factors = tuple[Tensor, Tensor]


def layer(bias: bool, dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> AdaptedLinear:
    """Six inputs, five outputs."""
    torch.manual_seed(0)
    return AdaptedLinear("m", nn.Linear(6, 5, bias=bias, dtype=dtype), SCALE, dropout)


def tensors(dtype: torch.dtype = torch.float64, a: bool = True, b: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """x [2, 4, 6], A [3, 6] and B [5, 3]; the factors train where asked."""
    torch.manual_seed(1)
    made = (torch.randn(2, 4, 6), torch.randn(3, 6), torch.randn(5, 3))
    x, own_a, own_b = (t.to(dtype) for t in made)
    return x.requires_grad_(), own_a.requires_grad_(a), own_b.requires_grad_(b)


def plain(own: AdaptedLinear, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """x W^T + bias + s (x A^T) B^T."""
    output: Tensor = own.base(x) + SCALE * (x @ a.T) @ b.T
    return output


def given(own: AdaptedLinear, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    own.current = (a, b)
    output: Tensor = own(x)
    return output


def gradients(output: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    """Of a weighted sum of the outputs, so that every entry has another weight."""
    weights = torch.arange(1, output.numel() + 1, dtype=output.dtype).view_as(output) / output.numel()
    return torch.autograd.grad((output * weights).sum(), [t for t in of if t.requires_grad])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("a", "b"), [(True, True), (False, True), (True, False)])
def test_its_gradients_are_those_of_its_outputs(bias: bool, a: bool, b: bool) -> None:
    own = layer(bias)

    assert torch.autograd.gradcheck(lambda *of: given(own, *of), tensors(a=a, b=b))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("a", "b"), [(True, True), (False, True), (True, False)])
def test_outputs_and_gradients_are_the_plain_formulas(bias: bool, a: bool, b: bool) -> None:
    own, of = layer(bias), tensors(a=a, b=b)
    found, expected = given(own, *of), plain(own, *of)

    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients(found, *of), gradients(expected, *of), strict=True):
        torch.testing.assert_close(one, other)


def test_an_input_that_needs_no_gradient_gets_none() -> None:
    own, (x, a, b) = layer(False), tensors()
    found = given(own, x.detach(), a, b)

    for one, other in zip(gradients(found, a, b), gradients(plain(own, x.detach(), a, b), a, b), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("bias", [False, True])
def test_under_bfloat16_autocast_it_is_the_plain_formula_within_bfloat16(bias: bool) -> None:
    own, of = layer(bias, torch.float32), tensors(torch.float32)
    expected = plain(own, *of)
    with torch.autocast("cpu", torch.bfloat16):
        found = given(own, *of)

    assert found.dtype == torch.bfloat16
    close = {
        "rtol": 0.02,
        "atol": 0.02 * float(expected.detach().abs().max()),
    }  # bfloat16 has 8 bits, and products add up
    torch.testing.assert_close(found.float(), expected, **close)
    for one, other in zip(gradients(found, *of), gradients(expected, *of), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.03, atol=0.03 * float(other.abs().max()))


def test_the_base_weight_gets_no_gradient() -> None:
    own, of = layer(True), tensors()
    given(own, *of).sum().backward()  # type: ignore[no-untyped-call]

    assert all(p.grad is None for p in own.parameters())


def test_factors_of_any_rank_can_be_set() -> None:
    own, (x, a, b) = layer(False), tensors()
    more = (torch.cat([a, a[:2]]), torch.cat([b, b[:, :2]], dim=1))

    torch.testing.assert_close(given(own, x, *more), plain(own, x, *more))


def test_dropout_is_off_when_the_model_is_asked() -> None:
    own, of = layer(True, dropout=0.5), tensors()
    own.train(False)

    torch.testing.assert_close(given(own, *of), plain(own, *of))


def test_dropout_in_training_falls_on_what_goes_into_a_and_on_nothing_else() -> None:
    own, (x, a, b) = layer(True, dropout=0.5), tensors()
    torch.manual_seed(3)
    found = given(own, x, a, b)

    torch.manual_seed(3)
    dropped = nn.functional.dropout(x, 0.5)
    expected = own.base(x) + SCALE * (dropped @ a.T) @ b.T
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, plain(own, x, a, b))
    for one, other in zip(gradients(found, x, a, b), gradients(expected, x, a, b), strict=True):
        torch.testing.assert_close(one, other)
