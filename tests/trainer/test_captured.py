"""Captured passes give the gradients of the passes as they come, and a training that uses them ends where it would."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.catalog.trie import CODES, LEVELS
from service.generation.backbone import Backbone
from service.generation.prompt import Prompt, compact
from service.settings import Settings
from tests.language_models import llama, qwen2
from trainer import execution
from trainer import fit as fit_module
from trainer.captured import CapturedPasses, add_up
from trainer.examples import TrainingSequence
from trainer.execution import AS_IT_COMES, can_capture, plan
from trainer.fit import FitConfig, FitReport, add_gradients, fit
from trainer.lora import LoraBackbone, let_go, names_of
from trainer.methods import make_method
from trainer.methods.base import Adapter

FIRST = 40
RANDOM = np.random.default_rng(5)
ITEMS = RANDOM.integers(0, CODES, size=(40, LEVELS)).astype(np.int16)
TEXT = Prompt("instruction", FIRST, np.array([7, 9, 8]), np.array([11]), np.array([12, 13]))
USERS = [
    TrainingSequence(RANDOM.integers(0, 40, length), int(RANDOM.integers(0, length)))
    for length in RANDOM.integers(2, 12, 64).tolist()
]
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def adapted(prompt: Prompt, dtype: torch.dtype = torch.float32) -> LoraBackbone:
    backbone = Backbone(llama(FIRST + LEVELS * CODES).cuda().to(dtype), prompt)
    lora = LoraBackbone(backbone, rank=4, alpha=8, dropout=0.0, seed=0)
    random = torch.Generator().manual_seed(1)
    lora.load({name: 0.1 * torch.randn(t.shape, generator=random) for name, t in lora.tensors().items()})
    backbone.model.train()
    return lora


@on_gpu
@pytest.mark.parametrize("prompt", [compact(FIRST), TEXT], ids=["compact", "instruction"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_captured_gradients_are_those_of_the_passes_as_they_come(prompt: Prompt, dtype: torch.dtype) -> None:
    lora = adapted(prompt, dtype)
    parameters = list(lora.parameters.values())
    way = plan(lora.backbone, USERS, 8, 100, compiled=False)
    assert way.targets
    passes = CapturedPasses(
        lora.backbone, parameters, (0.0, 0.0), low_precision=False, pool=torch.cuda.graph_pool_handle()
    )

    def gradients(passes: CapturedPasses | None, users: list[TrainingSequence]) -> tuple[float, list[Tensor]]:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()
        loss, _ = add_gradients(lora.backbone, users, ITEMS, way, (0.0, 0.0), False, passes=passes)
        return loss.item(), [p.grad.clone() for p in parameters if p.grad is not None]

    batches = [USERS[first : first + 8] for first in range(0, 64, 8)] * 3
    compared = [(gradients(None, batch), gradients(passes, batch)) for batch in batches]

    assert passes.graphs
    for (loss, expected), (again, found) in compared:
        assert again == pytest.approx(loss, rel=1e-3 if dtype is torch.bfloat16 else 1e-5)
        whole = torch.cat([g.flatten() for g in expected])
        apart = torch.cat([g.flatten() for g in found]) - whole
        assert float(apart.norm() / whole.norm()) < (2e-2 if dtype is torch.bfloat16 else 1e-5)


def trained(method_name: str) -> tuple[FitReport, dict[str, Tensor]]:
    """A second window by a method that stands on a first one's adapter."""
    lora = adapted(TEXT)
    method = make_method(
        Settings(method=method_name, lora_rank=4, lora_alpha=8, proximal_weight=1e-3, proximal_relative=True)
    )
    past = Adapter(lora.tensors(), lora.scale, "single-evolving")
    inputs = {name: torch.eye(len(lora.parameters[names_of(name)[0]].T)).double().cuda() for name in lora.modules}
    stage = method.begin(lora, past, lambda: inputs)
    report = fit(
        lora.backbone,
        stage.parameters,
        lambda _: USERS,
        ITEMS,
        FitConfig(epochs=20, batch_size=8, learning_rate=1e-3, weight_decay=0.01),
        evaluate=iter(range(1_000)).__next__,
        penalty=stage.penalty,
        penalty_weight=stage.weight,
        relative=True,
    )
    adapter = Adapter(lora.tensors(), lora.scale, method_name, stage.finish())
    assert {tensor.device.type for tensor in adapter.state.values()} <= {"cpu"}
    method.begin(lora, adapter, lambda: inputs)  # the next window can
    return report, dict(adapter.tensors)


@on_gpu
@pytest.mark.parametrize("method", ["peso", "sum-lora-latest-inherit", "sd-lora-all", "inf-lora-latest"])
def test_a_captured_training_ends_where_it_would(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[CapturedPasses] = []

    def remembered(*own: Any) -> CapturedPasses:
        used.append(CapturedPasses(*own))
        return used[-1]

    monkeypatch.setattr(fit_module, "CapturedPasses", remembered)
    report, adapter = trained(method)
    monkeypatch.setattr(execution, "LAUNCHES_BIND", 0.0)
    plain, expected = trained(method)

    (passes,) = used
    assert passes.graphs
    assert report.losses == pytest.approx(plain.losses, rel=1e-3)
    assert report.gradient_ratio[1:] == pytest.approx(plain.gradient_ratio[1:], rel=0.05)
    for name, tensor in expected.items():
        assert float((adapter[name] - tensor).norm() / tensor.norm()) < 1e-2


@on_gpu
def test_each_replay_drops_others() -> None:
    lora = adapted(TEXT)
    parameters = list(lora.parameters.values())
    way = plan(lora.backbone, USERS, 8, 100, compiled=False)
    passes = CapturedPasses(
        lora.backbone, parameters, (0.5, 0.0), low_precision=False, pool=torch.cuda.graph_pool_handle()
    )
    for_each = [add_gradients(lora.backbone, USERS[:8], ITEMS, way, (0.0, 0.0), False, passes=passes) for _ in range(6)]
    assert len({loss.item() for loss, _ in for_each}) == 6


def test_only_a_llama_that_nobody_watches_is_captured() -> None:
    lora = LoraBackbone(Backbone(llama(FIRST + LEVELS * CODES), TEXT), rank=4, alpha=8, dropout=0.0, seed=0)

    assert can_capture(lora.backbone)
    lora.observe(lambda name, x: None)
    assert not can_capture(lora.backbone)
    assert not can_capture(Backbone(qwen2(FIRST + LEVELS * CODES), TEXT))


def test_a_composed_adapters_graph_can_be_freed() -> None:
    lora = LoraBackbone(Backbone(llama(FIRST + LEVELS * CODES), TEXT), rank=4, alpha=8, dropout=0.0, seed=0)
    method = make_method(Settings(method="sum-lora-latest", lora_rank=4, lora_alpha=8))
    method.begin(lora, Adapter(lora.tensors(), lora.scale, "single-evolving"), dict)
    add_gradients(lora.backbone, USERS[:8], ITEMS, AS_IT_COMES, (0.0, 0.0), False)
    composed = [factor for layer in lora.layers.values() for factor in layer.current]
    assert all(factor.grad_fn is not None for factor in composed)

    let_go(lora.backbone.decoder)

    freed = [factor for layer in lora.layers.values() for factor in layer.current]
    assert all(factor.grad_fn is None for factor in freed)
    for before, after in zip(composed, freed, strict=True):
        torch.testing.assert_close(after, before)


def test_gradients_are_added_where_they_are() -> None:
    one, other, untouched = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    one.grad = torch.ones(2)
    place = one.grad.data_ptr()

    add_up([one, other, untouched], [torch.ones(2), torch.full((2,), 3.0), None])

    assert one.grad.data_ptr() == place
    assert one.grad.tolist() == [2.0, 2.0]
    assert other.grad is not None
    assert other.grad.tolist() == [3.0, 3.0]
    assert untouched.grad is None
