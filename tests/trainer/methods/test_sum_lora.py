"""SumLoRA against the paper's eq. 5 written out with plain matrices."""

import pytest
import torch
from torch import Tensor

from tests.trainer.methods.windows import RANK, chain, change, modules_of, own_tensors, same, train
from trainer.lora import LoraTensors
from trainer.methods.base import Adapter
from trainer.methods.cumulative import state_of

NAMES = [f"sum-lora-{scope}{inherit}" for scope in ("all", "latest") for inherit in ("", "-inherit")]


def unit(adapter: LoraTensors, module: str) -> Tensor:
    """norm(B) norm(A) of eq. 5, float64: each factor over the root of the sum of its squares."""
    a, b = adapter[f"{module}.lora_A.weight"].double(), adapter[f"{module}.lora_B.weight"].double()
    return (b / (b**2).sum().sqrt()) @ (a / (a**2).sum().sqrt())


@pytest.mark.parametrize("name", NAMES)
def test_the_effective_weights_are_those_of_equation_5(name: str) -> None:
    adapters = [trained.adapter for trained in chain(name)]
    own = [own_tensors(adapter) for adapter in adapters]

    for t, adapter in enumerate(adapters):
        past = own[:t] if "-all" in name else own[max(t - 1, 0) : t]
        for module in modules_of(adapter.tensors):
            expected = change(own[t], module, adapter.scale)
            for before in past:
                expected = expected + adapter.scale * unit(before, module)
            torch.testing.assert_close(change(adapter.tensors, module, adapter.scale), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_first_window_is_single_evolvings_bit_for_bit(name: str) -> None:
    assert same(chain(name)[0].adapter.tensors, chain("single-evolving")[0].adapter.tensors)


def test_a_past_adapter_that_is_zero_adds_nothing() -> None:
    """As the first of a state that an earlier version wrote: a base's first adapter, B 0 and no norm to divide by."""
    first = chain("single-evolving")[0]
    fresh = {name: t if ".lora_A." in name else torch.zeros_like(t) for name, t in first.started.items()}

    found = train("sum-lora-all", 1, Adapter(fresh, 2.0, "sum-lora-all", state_of([fresh])))

    assert found.adapter.rank == 2 * RANK
    assert all(bool(tensor.isfinite().all()) for tensor in found.adapter.tensors.values())
    for module in modules_of(fresh):
        torch.testing.assert_close(
            change(found.adapter.tensors, module, 2.0), change(own_tensors(found.adapter), module, 2.0)
        )
