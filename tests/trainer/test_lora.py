"""An adapter in PEFT's format: what we write, PEFT reads, and it means the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor

from service.adapters.lora import Dimensions, check_config, expected_shapes, read_weights
from service.generation.backbone import Backbone, merge_lora
from service.generation.reference import score_items
from tests.models import tiny_backbone
from trainer.lora import TARGET_MODULES, LoraBackbone, save_adapter

HISTORY = np.array([[1, 2, 3, 4], [250, 0, 7, 9]], dtype=np.int16)
ITEMS = np.arange(80, dtype=np.int16).reshape(20, 4)


def wrapped(backbone: Backbone | None = None, rank: int = 4, dropout: float = 0.0, seed: int = 0) -> LoraBackbone:
    return LoraBackbone(backbone or tiny_backbone(), rank=rank, alpha=2 * rank, dropout=dropout, seed=seed)


def moved(lora: LoraBackbone) -> dict[str, Tensor]:
    """An adapter of the same shape with both factors away from zero."""
    random = torch.Generator().manual_seed(1)
    return {name: 0.1 * torch.randn(t.shape, generator=random) for name, t in lora.tensors().items()}


def scores(backbone: Backbone) -> np.ndarray:
    return score_items(backbone, HISTORY, ITEMS)


def test_every_projection_of_every_layer_is_adapted_and_nothing_else_is_trained() -> None:
    lora = wrapped()
    backbone = lora.backbone

    names = {f"layers.{layer}.{projection}" for layer in range(2) for projection in TARGET_MODULES}
    found = {n.split(".lora_")[0].replace("self_attn.", "").replace("mlp.", "") for n in lora.parameters}
    assert found == {f"base_model.model.model.{name}" for name in names}
    assert len(lora.parameters) == 2 * len(names)
    assert all(p.requires_grad for p in lora.parameters.values())
    assert not any(p.requires_grad for p in backbone.model.parameters())


def test_a_fresh_adapter_changes_nothing_and_its_seed_decides_a() -> None:
    first, again, other = wrapped(seed=1), wrapped(seed=1), wrapped(seed=2)

    np.testing.assert_array_equal(scores(first.backbone), scores(tiny_backbone()))
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, again.tensors()[name])
        assert (
            torch.count_nonzero(tensor) == 0 if ".lora_B." in name else not torch.equal(tensor, other.tensors()[name])
        )


def test_tensors_are_copies() -> None:
    lora = wrapped()
    taken = lora.tensors()

    lora.load(moved(lora))

    assert all(torch.count_nonzero(t) == 0 for name, t in taken.items() if ".lora_B." in name)


def test_what_is_loaded_is_what_comes_out_and_it_is_in_effect() -> None:
    lora = wrapped()
    tensors = moved(lora)

    lora.load({name: t.numpy() for name, t in tensors.items()})

    assert all(torch.equal(t, tensors[name]) for name, t in lora.tensors().items())
    np.testing.assert_allclose(scores(lora.backbone), scores(merge_lora(tiny_backbone(), tensors, 2.0)), atol=1e-4)


def test_a_saved_adapter_scores_the_same_when_peft_loads_it(tmp_path: Path) -> None:
    lora = wrapped()
    tensors = moved(lora)
    lora.load(tensors)
    save_adapter(tmp_path / "adapter", tensors, scale=2.0, dropout=0.05)

    base = tiny_backbone()
    loaded = PeftModel.from_pretrained(base.model, tmp_path / "adapter", local_files_only=True)
    loaded.train(False)

    found = scores(Backbone(loaded.get_base_model()))
    np.testing.assert_allclose(found, scores(lora.backbone), atol=1e-5)
    assert np.abs(found - scores(tiny_backbone())).max() > 0.1


def test_a_saved_adapter_passes_the_services_verification(tmp_path: Path) -> None:
    tensors = moved(wrapped())
    save_adapter(tmp_path, tensors, scale=2.0, dropout=0.05)

    config = check_config(json.loads((tmp_path / "adapter_config.json").read_text()), "b-1")
    dimensions = Dimensions.of(tiny_backbone().model.config.to_dict())
    weights = read_weights((tmp_path / "adapter_model.safetensors").read_bytes(), config, dimensions)

    assert {n: tuple(t.shape) for n, t in tensors.items()} == expected_shapes(list(TARGET_MODULES), 4, dimensions)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(weights[name], tensor.numpy())


def test_saving_the_same_adapter_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    tensors = moved(wrapped())
    save_adapter(tmp_path / "one", tensors, scale=2.0)
    save_adapter(tmp_path / "two", dict(reversed(tensors.items())), scale=2.0)

    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("change", ["missing", "unknown", "renamed"])
def test_an_adapter_with_other_names_is_refused(change: str) -> None:
    lora = wrapped()
    tensors = moved(lora)
    name = next(iter(tensors))
    if change != "unknown":
        tensor = tensors.pop(name)
    if change != "missing":
        tensors[name.replace("layers.0", "layers.7")] = torch.zeros(1) if change == "unknown" else tensor

    with pytest.raises(ValueError, match="other modules"):
        lora.load(tensors)


def test_an_adapter_of_another_rank_is_refused_and_nothing_of_it_is_taken_in() -> None:
    lora = wrapped()
    before = lora.tensors()
    tensors = moved(lora)
    last = sorted(tensors)[-1]
    tensors[last] = torch.zeros(8, 8)

    with pytest.raises(ValueError, match="the base wants"):
        lora.load(tensors)
    with pytest.raises(ValueError, match="the base wants"):
        lora.load(moved(wrapped(rank=8)))

    assert all(torch.equal(t, before[name]) for name, t in lora.tensors().items())


def test_unwrapping_gives_back_the_base_bit_for_bit() -> None:
    base = tiny_backbone()
    before = scores(base)
    names = [name for name, _ in base.model.named_parameters()]
    lora = wrapped(base)
    lora.load(moved(lora))
    assert not np.allclose(scores(base), before)

    unwrapped = lora.unwrap()

    np.testing.assert_array_equal(scores(unwrapped), before)
    np.testing.assert_array_equal(scores(base), before)
    assert [name for name, _ in unwrapped.model.named_parameters()] == names


def test_a_base_can_be_wrapped_again_for_the_next_window() -> None:
    base = tiny_backbone()
    first = wrapped(base)
    tensors = moved(first)
    first.unwrap()

    second = wrapped(base, rank=4)
    second.load(tensors)

    np.testing.assert_allclose(scores(second.backbone), scores(merge_lora(tiny_backbone(), tensors, 2.0)), atol=1e-4)
    assert second.tensors().keys() == tensors.keys()


def test_the_rank_and_alpha_that_are_written_are_those_of_the_tensors(tmp_path: Path) -> None:
    save_adapter(tmp_path / "even", moved(wrapped(rank=6)), scale=2.0)
    save_adapter(tmp_path / "odd", moved(wrapped(rank=3)), scale=0.5)

    even, odd = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("even", "odd"))

    assert (even["r"], even["lora_alpha"]) == (6, 12)
    assert (odd["r"], odd["lora_alpha"]) == (3, 1.5)


def test_what_is_composed_is_what_is_in_force_and_what_comes_out() -> None:
    lora = wrapped()
    tensors = moved(lora)
    lora.compose = lambda: {
        name: torch.cat([p, tensors[name]], dim=int(".lora_B." in name)) for name, p in stacked.items()
    }
    stacked = lora.parameters

    found = lora.tensors()

    assert {t.shape[0] for name, t in found.items() if ".lora_A." in name} == {8}
    np.testing.assert_allclose(scores(lora.backbone), scores(merge_lora(tiny_backbone(), found, 2.0)), atol=1e-4)
    np.testing.assert_allclose(scores(lora.backbone), scores(merge_lora(tiny_backbone(), tensors, 2.0)), atol=1e-4)


def test_an_observer_sees_each_layers_inputs_until_it_is_taken_away() -> None:
    lora = wrapped()
    seen: dict[str, tuple[int, ...]] = {}

    def look(module: str, x: Tensor) -> None:
        assert not x.requires_grad
        seen[module] = tuple(x.shape)

    lora.observe(look)
    lora.backbone.decoder(input_ids=torch.tensor([[1, 5, 9]]), use_cache=False)
    assert seen.keys() == set(lora.modules)
    assert seen["base_model.model.model.layers.1.mlp.down_proj"] == (1, 3, 64)

    seen.clear()
    lora.observe(look, training_only=True)
    lora.backbone.decoder(input_ids=torch.tensor([[1, 5, 9]]), use_cache=False)
    assert seen == {}
    lora.backbone.model.train()
    lora.backbone.decoder(input_ids=torch.tensor([[1, 5, 9]]), use_cache=False)
    assert seen.keys() == set(lora.modules)

    seen.clear()
    lora.observe(None)
    lora.backbone.decoder(input_ids=torch.tensor([[1, 5, 9]]), use_cache=False)
    assert seen == {}


@pytest.mark.parametrize("training", [True, False])
def test_wrapping_keeps_the_models_mode_so_that_no_dropout_acts_unasked(training: bool) -> None:
    base = tiny_backbone()
    base.model.train(training)

    lora = wrapped(base, dropout=0.5)

    assert {layer.training for layer in lora.layers.values()} == {training}
