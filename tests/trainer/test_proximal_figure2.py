"""Orthogonality and LoRA-output KL, the paper's other terms of figure 2, against their definitions."""

import math

import pytest
import torch
from torch import Tensor

from service.settings import GroupBy
from tests.trainer.proximal_cases import (
    SCALE,
    as_tensors,
    inputs,
    name,
    observed,
    scale_of,
    slope,
    state,
)
from trainer.proximal import LoraTensors, Orthogonal, OutputKL, SoftmaxKL


@pytest.mark.parametrize("size", [1e-4, 1.0, 30.0])
def test_orthogonality_is_the_sum_of_the_squared_overlaps_of_rows_of_a_and_columns_of_b(size: float) -> None:
    before, now = state(1), state(1) + size * state(2)
    old, new = as_tensors(before), as_tensors(now)
    expected = 0.0
    for key, tensor in new.items():
        vectors, others = (t.tolist() if "lora_A" in key else t.T.tolist() for t in (tensor, old[key]))
        expected += sum(sum(x * y for x, y in zip(u, v, strict=True)) ** 2 for u in vectors for v in others)

    def term(v: Tensor) -> Tensor:
        return Orthogonal(old)(as_tensors(v))

    assert term(now).item() == pytest.approx(expected, rel=1e-12)
    by_hand = [  # 2 (A A'^T) A' and 2 B' (B'^T B)
        (2 * t @ old[n].T @ old[n] if "lora_A" in n else 2 * old[n] @ old[n].T @ t).flatten() for n, t in new.items()
    ]
    torch.testing.assert_close(slope(term, now), torch.cat(by_hand), rtol=1e-12, atol=1e-12)


def test_an_inherited_state_is_not_orthogonal_to_itself_and_pays_from_the_first_step() -> None:
    """By pencil: A = (1, 2), B = (3, 0)^T overlap with themselves by 5 and 9."""
    tensors = {name(0, "mlp.up_proj", "A"): torch.tensor([[1.0, 2.0]]), name(0, "mlp.up_proj", "B"): torch.ones(2, 1)}
    tensors[name(0, "mlp.up_proj", "B")] *= torch.tensor([[3.0], [0.0]])
    current = {n: t.clone().requires_grad_() for n, t in tensors.items()}

    value = Orthogonal(tensors)(current)

    assert value.item() == 25 + 81
    assert all(torch.count_nonzero(g) for g in torch.autograd.grad(value, list(current.values())))


def test_a_state_that_spans_other_directions_costs_nothing() -> None:
    a, b = name(0, "mlp.up_proj", "A"), name(0, "mlp.up_proj", "B")
    before = {a: torch.tensor([[1.0, 2.0, 0.0]]), b: torch.tensor([[3.0], [0.0]])}

    assert Orthogonal(before)({a: torch.tensor([[-2.0, 1.0, 5.0]]), b: torch.tensor([[0.0], [7.0]])}).item() == 0


def test_a_fresh_adapter_has_no_b_part() -> None:
    before = as_tensors(state(1))
    fresh = {n: (t if "lora_A" in n else 0 * t).requires_grad_() for n, t in as_tensors(state(2)).items()}
    of_a = sum(((before[n] @ t.T) ** 2).sum().item() for n, t in fresh.items() if "lora_A" in n)

    value = Orthogonal(before)(fresh)

    assert value.item() == pytest.approx(of_a)
    gradients = torch.autograd.grad(value, list(fresh.values()))
    assert all(bool(torch.count_nonzero(g)) is ("lora_A" in n) for n, g in zip(fresh, gradients, strict=True))


def plain_output_kl(previous: LoraTensors, current: LoraTensors, batch: dict[str, Tensor]) -> Tensor:
    """The definition, token by token; gradients flow to `current`."""
    total = torch.zeros((), dtype=torch.float64)
    for module, x in batch.items():
        tokens = x.reshape(-1, x.shape[-1])
        for token in tokens:
            log_q, log_p = (
                torch.log_softmax(SCALE * (s[f"{module}.lora_B.weight"] @ (s[f"{module}.lora_A.weight"] @ token)), 0)
                for s in (current, previous)
            )
            total = total + (log_q.exp() * (log_q - log_p)).sum() / len(tokens)
    return total


@pytest.mark.parametrize("size", [1e-4, 0.3, 10.0])
def test_output_kl_and_its_gradient_are_those_of_its_definition(size: float) -> None:
    before, now = state(1), state(1) + size * state(2)
    batch = inputs(3)

    def term(v: Tensor) -> Tensor:
        return observed(as_tensors(before), batch)(as_tensors(v))

    def plain(v: Tensor) -> Tensor:
        return plain_output_kl(as_tensors(before), as_tensors(v), batch)

    assert term(now).item() == pytest.approx(plain(now).item(), rel=1e-6)
    expected = slope(plain, now)
    torch.testing.assert_close(slope(term, now), expected, rtol=0, atol=1e-9 * scale_of(expected) + 1e-14)


def test_output_kl_of_one_token_by_pencil() -> None:
    a, b = name(0, "mlp.up_proj", "A"), name(0, "mlp.up_proj", "B")
    before = {a: torch.ones(1, 1), b: torch.zeros(2, 1)}
    term = OutputKL(before, 2.0)
    term.observe("base_model.model.model.layers.0.mlp.up_proj", torch.ones(1, 1, 1))

    moved = term({a: torch.ones(1, 1), b: torch.tensor([[math.log(3) / 2], [0.0]])})  # (3/4, 1/4) against (1/2, 1/2)

    assert moved.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unchanged_outputs_cost_nothing_and_pull_nowhere(dtype: torch.dtype) -> None:
    v = state(1).to(dtype).requires_grad_()
    batch = {module: x.to(dtype) for module, x in inputs(3).items()}

    value = observed(as_tensors(v.detach()), batch)(as_tensors(v))

    assert value.item() == 0
    assert torch.count_nonzero(torch.autograd.grad(value, v)[0]) == 0


def test_a_shift_of_all_outputs_of_a_module_costs_nothing() -> None:
    """Every row of B moved alike moves every output of a token alike."""
    before = as_tensors(state(1))
    shifted = {n: t + torch.tensor([0.5, -1.5]) if "lora_B" in n else t for n, t in before.items()}

    assert observed(before)(shifted).item() == pytest.approx(0, abs=1e-12)
    assert SoftmaxKL(before, GroupBy.TENSOR)(shifted).item() > 0.1


def test_output_kl_pulls_on_the_adapter_and_not_on_what_came_before_it() -> None:
    batch = {module: x.requires_grad_() for module, x in inputs(3).items()}
    current = {n: t.requires_grad_() for n, t in as_tensors(state(2)).items()}

    observed(as_tensors(state(1)), batch)(current).backward()

    assert all(x.grad is None for x in batch.values())
    assert all(t.grad is not None for t in current.values())


def test_the_last_pass_shown_is_the_one_that_counts() -> None:
    before, now = as_tensors(state(1)), as_tensors(state(2))
    term = observed(before, inputs(3, tokens=9))
    for module, x in inputs(4).items():
        term.observe(module, x)

    assert term(now).item() == observed(before, inputs(4))(now).item()
    assert term(now).item() == observed(before, inputs(4))(now).item()  # asked again


def test_inputs_that_were_not_shown_are_asked_for() -> None:
    with pytest.raises(ValueError, match="observe"):
        OutputKL(as_tensors(state(1)), SCALE)(as_tensors(state(2)))


def test_of_many_tokens_the_same_sample_of_all_code_levels_is_taken_every_time() -> None:
    """A mark per token position shows which were taken: a value of 0 except where a marked token is in the sample."""
    a, b = name(0, "mlp.up_proj", "A"), name(0, "mlp.up_proj", "B")
    before = {a: torch.ones(1, 1), b: torch.zeros(2, 1)}
    now = {a: torch.ones(1, 1), b: torch.tensor([[1.0], [0.0]])}

    def taken(position: int) -> bool:
        x = torch.zeros(4, 16, 1)
        x.view(-1)[position] = 1
        term = OutputKL(before, 1.0, tokens=16)
        term.observe("base_model.model.model.layers.0.mlp.up_proj", x)
        return term(now).item() > 0

    sample = [position for position in range(64) if taken(position)]

    assert len(sample) == 16
    assert {position % 4 for position in sample} == {0, 1, 2, 3}
    assert sample == [position for position in range(64) if taken(position)]
