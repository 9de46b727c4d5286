"""What InfLoRA takes its directions from: the mean of x x^T over the tokens of a window, and over nothing else."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.catalog.trie import LEVELS
from service.generation.prompt import BOS, level_offsets
from tests.models import tiny_backbone
from trainer.covariance import input_covariance
from trainer.examples import TrainingSequence
from trainer.lora import LoraBackbone

CODES = np.random.default_rng(0).integers(0, 256, size=(12, 4)).astype(np.int16)
SEQUENCES = tuple(
    TrainingSequence(np.array(rows, dtype=np.int64), 0) for rows in ([0, 1, 2, 3, 4], [5, 6], [7, 8, 9], [11])
)


def moved(dropout: float = 0.0) -> LoraBackbone:
    """A backbone with a LoRA that changes what later layers see."""
    lora = LoraBackbone(tiny_backbone(), rank=3, alpha=6, dropout=dropout, seed=0)
    random = torch.Generator().manual_seed(1)
    lora.load({name: 0.1 * torch.randn(t.shape, generator=random) for name, t in lora.tensors().items()})
    return lora


def brute_force(lora: LoraBackbone) -> dict[str, Tensor]:
    """One sequence at a time, one token at a time, float64. The last code of a sequence predicts nothing: left out."""
    seen: dict[str, list[Tensor]] = {module: [] for module in lora.modules}

    def hook(module: str) -> object:
        return lambda _, inputs: seen[module].extend(inputs[0][0].double())

    handles = []
    for name in lora.modules:
        layer = lora.backbone.model.get_submodule(name.removeprefix("base_model.model."))
        handles.append(layer.register_forward_pre_hook(hook(name)))  # type: ignore[arg-type]
    offsets = level_offsets(lora.backbone.first_code_token)
    for sequence in SEQUENCES:
        tokens = [BOS, *(CODES[sequence.rows].astype(np.int64) + offsets).reshape(-1)[:-1].tolist()]
        with torch.no_grad():
            lora.backbone.decoder(input_ids=torch.tensor([tokens]), use_cache=False)
    for handle in handles:
        handle.remove()
    count = LEVELS * sum(len(sequence.rows) for sequence in SEQUENCES)
    assert all(len(vectors) == count for vectors in seen.values())
    return {
        module: torch.stack([torch.outer(x, x) for x in vectors]).sum(dim=0) / count for module, vectors in seen.items()
    }


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_it_is_the_mean_over_real_tokens_whatever_the_batch(batch_size: int) -> None:
    lora = moved()
    expected = brute_force(lora)

    found = input_covariance(lora, SEQUENCES, CODES, batch_size=batch_size)

    assert found.keys() == set(lora.modules) == expected.keys()
    for module, h in found.items():
        assert h.dtype == torch.float64
        torch.testing.assert_close(h, expected[module], rtol=1e-4, atol=1e-5)


def test_it_is_that_of_the_model_as_it_is_composed_now() -> None:
    lora = moved()
    first = input_covariance(lora, SEQUENCES, CODES)
    lora.compose = lambda: {name: torch.zeros_like(p) for name, p in lora.parameters.items()}

    bare = input_covariance(lora, SEQUENCES, CODES)

    module = "base_model.model.model.layers.0.self_attn.q_proj"  # its inputs are the embeddings, whatever LoRA does
    torch.testing.assert_close(first[module], bare[module])
    later = module.replace("layers.0", "layers.1")
    assert not torch.allclose(first[later], bare[later], rtol=1e-2)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_plays_no_part_and_the_models_mode_is_restored(training: bool) -> None:
    lora = moved(dropout=0.5)
    lora.backbone.model.train(training)

    found = input_covariance(lora, SEQUENCES, CODES)

    assert lora.backbone.model.training is training
    assert all(module.training is training for module in lora.backbone.model.modules())
    lora.backbone.model.train(False)
    again = input_covariance(lora, SEQUENCES, CODES)
    assert all(torch.equal(h, again[module]) for module, h in found.items())


def test_nobody_listens_afterwards_and_nothing_is_left_to_train() -> None:
    lora = moved()
    input_covariance(lora, SEQUENCES, CODES)

    assert all(layer.observer is None for layer in lora.layers.values())
    assert all(p.grad is None for p in lora.parameters.values())


def test_the_models_mode_is_restored_also_when_it_fails() -> None:
    lora = moved()
    lora.backbone.model.train()

    class Broken(nn.Module):
        def forward(self, *inputs: object, **more: object) -> Tensor:
            raise RuntimeError("out of memory")

    lora.backbone.model.model.layers[1] = Broken()

    with pytest.raises(RuntimeError, match="out of memory"):
        input_covariance(lora, SEQUENCES, CODES)

    assert lora.backbone.model.training
    assert all(layer.observer is None for layer in lora.layers.values())
