"""SD-LoRA: eq. 5 with magnitudes that start at 1, are trained, and are kept."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from tests.models import tiny_backbone
from tests.trainer.methods.test_sum_lora import unit
from tests.trainer.methods.windows import (
    CODES,
    chain,
    change,
    modules_of,
    own_tensors,
    settings,
    train,
    window,
    wrapped,
)
from trainer.fit import sequence_loss
from trainer.methods import make_method
from trainer.methods.base import Adapter

NAMES = [f"sd-lora-{scope}{inherit}" for scope in ("all", "latest") for inherit in ("", "-inherit")]
both_starts = pytest.mark.parametrize("inherit", ["", "-inherit"])


def magnitudes(adapter: Adapter, number: int) -> dict[str, float]:
    """Of past adapter `number`, by module, from the state."""
    start = f"magnitude.{number:04d}/"
    return {key.removeprefix(start): float(t) for key, t in adapter.state.items() if key.startswith(start)}


def test_magnitudes_start_at_one_and_the_model_at_sum_loras() -> None:
    incumbent = chain("sd-lora-all")[0].adapter
    chosen = settings(method="sd-lora-all")
    method = make_method(chosen)
    lora = wrapped(tiny_backbone(), method, incumbent, chosen)

    stage = method.begin(lora, incumbent, dict)

    own = {id(p) for p in lora.parameters.values()}
    learnt = [p for p in stage.parameters if id(p) not in own]
    assert [p.item() for p in learnt] == [1.0] * len(lora.modules)
    assert all(p.ndim == 0 for p in learnt)  # what has one dimension or none is not decayed
    assert len(stage.parameters) == len(own) + len(learnt)
    for module in lora.modules:
        expected = 2.0 * unit(own_tensors(incumbent), module)
        torch.testing.assert_close(change(lora.tensors(), module, 2.0), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_magnitude_is_trained(name: str) -> None:
    chosen, incumbent = settings(method=name), chain(name)[0].adapter
    method = make_method(chosen)
    lora = wrapped(tiny_backbone(), method, incumbent, chosen)
    stage = method.begin(lora, incumbent, dict)
    own = {id(p) for p in lora.parameters.values()}

    sequence_loss(lora.backbone, window(2).training[:2], CODES, 0.0)[0].backward()  # type: ignore[no-untyped-call]

    learnt = [p for p in stage.parameters if id(p) not in own]
    assert learnt
    assert all(p.grad is not None and p.grad != 0 for p in learnt)


@both_starts
def test_all_magnitudes_are_carried_over_and_a_new_past_adapter_gets_its_own(inherit: str) -> None:
    first, second, third = (trained.adapter for trained in chain(f"sd-lora-all{inherit}"))
    modules = set(modules_of(first.tensors))

    assert magnitudes(first, 0) == {}
    assert magnitudes(second, 0).keys() == magnitudes(third, 0).keys() == magnitudes(third, 1).keys() == modules
    assert magnitudes(second, 1) == {}
    assert all(value != 1.0 for value in magnitudes(second, 0).values())
    again = train(f"sd-lora-all{inherit}", 3, second, learning_rate_update=1e-12).adapter
    assert magnitudes(again, 0) == pytest.approx(magnitudes(second, 0), abs=1e-6)
    assert magnitudes(again, 1) == pytest.approx(dict.fromkeys(modules, 1.0), abs=1e-6)


@both_starts
def test_the_effective_weights_are_those_of_equation_5(inherit: str) -> None:
    adapters = [trained.adapter for trained in chain(f"sd-lora-all{inherit}")]
    own = [own_tensors(adapter) for adapter in adapters]

    for t, adapter in enumerate(adapters):
        for module in modules_of(adapter.tensors):
            expected = change(own[t], module, adapter.scale)
            for i in range(t):
                expected = expected + adapter.scale * magnitudes(adapter, i)[module] * unit(own[i], module)
            torch.testing.assert_close(change(adapter.tensors, module, adapter.scale), expected, atol=1e-6, rtol=1e-5)


@both_starts
def test_latest_adds_a_multiple_of_the_latest_adapters_unit(inherit: str) -> None:
    adapters = [trained.adapter for trained in chain(f"sd-lora-latest{inherit}")]

    for before, adapter in pairwise(adapters):
        for module in modules_of(adapter.tensors):
            own = change(own_tensors(adapter), module, adapter.scale)
            left = change(adapter.tensors, module, adapter.scale) - own
            direction = adapter.scale * unit(own_tensors(before), module)
            magnitude = (left * direction).sum() / (direction * direction).sum()
            torch.testing.assert_close(left, magnitude * direction, atol=1e-6, rtol=1e-4)
            assert magnitude != pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("kind", ["all", "latest", "all-inherit", "latest-inherit"])
def test_with_magnitudes_held_at_one_it_is_sum_lora(kind: str) -> None:
    """The same gradients for the window's own A and B, and the same model."""

    def start(family: str) -> tuple[float, dict[str, Tensor]]:
        chosen = settings(method=f"{family}-{kind}")
        before = chain(f"sum-lora-{kind}")[0].adapter
        incumbent = Adapter(before.tensors, before.scale, chosen.method, before.state)
        method = make_method(chosen)
        lora = wrapped(tiny_backbone(), method, incumbent, chosen)
        stage = method.begin(lora, incumbent, dict)
        own: list[nn.Parameter] = list(lora.parameters.values())
        for parameter in stage.parameters:
            parameter.requires_grad_(any(parameter is p for p in own))
        loss, _ = sequence_loss(lora.backbone, window(2).training, CODES, 0.0)
        gradients = torch.autograd.grad(loss, own)
        return loss.item(), dict(zip(lora.parameters, gradients, strict=True))

    (sum_loss, sum_gradients), (sd_loss, sd_gradients) = start("sum-lora"), start("sd-lora")

    assert sd_loss == sum_loss
    assert all(torch.equal(gradient, sum_gradients[name]) for name, gradient in sd_gradients.items())
