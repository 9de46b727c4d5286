"""LoRA merged into a copy: same function as peft's unmerged one, and the base stays as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch

from service.adapters.artifacts import VerifiedBase
from service.adapters.lora import Dimensions
from service.errors import ArtifactError
from service.generation.backbone import load_backbone, match_lora, merge_lora
from service.generation.llama import pack
from service.generation.prompt import compact
from service.generation.reference import score_items
from service.generation.torch_engine import TorchEngine
from tests.models import tiny_backbone
from trainer.lora import LoraBackbone

HISTORY = np.array([[1, 2, 3, 4], [250, 0, 7, 9]], dtype=np.int16)
ITEMS = np.arange(80, dtype=np.int16).reshape(20, 4)


def moved(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same adapter with both factors away from zero."""
    generator = torch.Generator().manual_seed(1)
    return {name: 0.1 * torch.randn(t.shape, generator=generator) for name, t in tensors.items()}


def test_merged_weights_score_like_pefts_unmerged_adapter() -> None:
    base = tiny_backbone()
    lora = LoraBackbone(tiny_backbone(), rank=4, alpha=8, dropout=0.5, seed=0)
    tensors = moved(lora.tensors())
    lora.load(tensors)
    lora.backbone.model.train(False)

    merged = merge_lora(base, tensors, lora.scale)

    np.testing.assert_allclose(
        score_items(merged, HISTORY, ITEMS), score_items(lora.backbone, HISTORY, ITEMS), atol=1e-4
    )


def test_merging_leaves_the_base_as_it_was_and_shares_what_is_not_adapted() -> None:
    base = tiny_backbone()
    before = score_items(base, HISTORY, ITEMS)
    tensors = moved(LoraBackbone(tiny_backbone(), rank=4, alpha=8, dropout=0, seed=0).tensors())

    merged = merge_lora(base, tensors, 2.0)

    np.testing.assert_array_equal(score_items(base, HISTORY, ITEMS), before)
    assert not np.allclose(score_items(merged, HISTORY, ITEMS), before)
    assert merged.model.get_input_embeddings().weight is base.model.get_input_embeddings().weight
    assert merged.model.get_submodule("model.layers.0.mlp.up_proj").weight.data_ptr() != (
        base.model.get_submodule("model.layers.0.mlp.up_proj").weight.data_ptr()
    )


def test_a_fresh_adapter_changes_nothing() -> None:
    base = tiny_backbone()
    fresh = LoraBackbone(tiny_backbone(), rank=4, alpha=8, dropout=0, seed=0).tensors()

    merged = merge_lora(base, fresh, 2.0)

    np.testing.assert_array_equal(score_items(merged, HISTORY, ITEMS), score_items(base, HISTORY, ITEMS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.zeros(4, 32)}, "not pairs"),
        (lambda t: {n.replace("layers.1.", "layers.9."): v for n, v in t.items()}, "no module"),
        (lambda t: {n: torch.zeros(v.shape[0] + 1, v.shape[1]) for n, v in t.items()}, "does not fit"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(change: object, message: str) -> None:
    tensors = LoraBackbone(tiny_backbone(), rank=4, alpha=8, dropout=0, seed=0).tensors()

    with pytest.raises(ArtifactError, match=message):
        merge_lora(tiny_backbone(), change(tensors), 1.0)  # type: ignore[operator]


def test_a_model_without_rows_for_its_prompts_tokens_is_refused(tmp_path: Path) -> None:
    tiny_backbone().model.save_pretrained(tmp_path)
    compact(first_code_token=500).save(tmp_path)
    with pytest.raises(ArtifactError, match="no rows for the 1024 semantic-ID tokens"):
        load_backbone(tmp_path, torch.device("cpu"), torch.float32)


def test_an_engine_refuses_a_base_that_reads_fewer_items_than_prompts_may_have(tmp_path: Path) -> None:
    """256 positions: a start, 63 items of four codes, and three codes of what is recommended."""
    tiny_backbone().model.save_pretrained(tmp_path / "model")
    base = VerifiedBase("b-0", "0", tmp_path, {}, Dimensions({}))
    assert TorchEngine(device="cpu", dtype="float32", beams=5, history_items=63).load(base, None)
    with pytest.raises(ArtifactError, match=r"63 items at most; set ADAPTIDE_HISTORY_ITEMS \(now 64\)"):
        TorchEngine(device="cpu", dtype="float32", beams=5, history_items=64).load(base, None)


def test_weights_packed_with_an_adapter_are_those_of_the_merged_backbone() -> None:
    base = tiny_backbone()
    tensors = moved(LoraBackbone(tiny_backbone(), rank=4, alpha=8, dropout=0, seed=0).tensors())
    some = {name: tensor for name, tensor in tensors.items() if "layers.0.mlp.up_proj" not in name}

    packed = pack(base.model, match_lora(base, some, 2.0))
    expected = pack(merge_lora(base, some, 2.0).model)

    assert packed is not None
    assert expected is not None
    for ours, theirs in zip(packed.layers, expected.layers, strict=True):
        for one, other in zip(ours.tensors, theirs.tensors, strict=True):
            assert torch.equal(one, other)


def test_an_adapter_of_the_head_is_not_packed_into_the_blocks() -> None:
    base = tiny_backbone()
    head = base.model.get_output_embeddings().weight
    pair = {"lora_A": torch.ones(2, head.shape[1]), "lora_B": torch.ones(head.shape[0], 2)}
    tensors = {f"base_model.model.lm_head.{name}.weight": tensor for name, tensor in pair.items()}

    assert pack(base.model, match_lora(base, tensors, 1.0)) is None
