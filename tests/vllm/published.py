"""Bases and adapters that went through the artifact store: tiny models of real architecture, random weights."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from service.adapters.artifacts import ArtifactStore, VerifiedAdapter, VerifiedBase
from service.adapters.lora import PROJECTIONS, expected_shapes
from service.catalog.trie import CODES, LEVELS
from service.generation.backbone import Backbone, load_backbone, merge_lora
from service.generation.prompt import COMPACT, VOCABULARY, Prompt

TARGETS = list(PROJECTIONS)
RANK, ALPHA = 4, 8


def llama(
    seed: int, *, hidden: int = 64, heads: int = 2, kv_heads: int = 2, vocabulary: int = VOCABULARY
) -> LlamaForCausalLM:
    """Weights large enough that no two items score alike."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=1.5 / hidden**0.5,
    )
    return LlamaForCausalLM(config)


def instruction() -> Prompt:
    """Text around and between the items, and ordinary tokens below the semantic-ID ones."""
    random = np.random.default_rng(0)
    before, between, after = (random.integers(0, 500, size=n) for n in (70, 3, 40))
    return Prompt("instruction", 500, before, between, after)


class Published:
    """The store below one folder, and what the referee needs to score with what is in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.artifacts = ArtifactStore(folder / "store")
        self._made = 0

    def base(self, model: PreTrainedModel, prompt: Prompt = COMPACT) -> VerifiedBase:
        source = self._next()
        (source / "codec").mkdir(parents=True)
        (source / "codec" / "codec.json").write_text("{}")
        model.save_pretrained(source / "model")
        prompt.save(source / "model")
        made = self.artifacts.publish_base(source, {})
        return self.artifacts.open_base(made.id, made.digest)

    def adapter(self, base: VerifiedBase, seed: int, *, rank: int = RANK) -> VerifiedAdapter:
        """One that changes every score."""
        random, source = np.random.default_rng(seed), self._next()
        source.mkdir()
        shapes = expected_shapes(TARGETS, rank, base.dimensions)
        tensors = {name: random.normal(scale=0.1, size=shape).astype(np.float32) for name, shape in shapes.items()}
        save_file(tensors, source / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": TARGETS}
        (source / "adapter_config.json").write_text(json.dumps(config))
        made = self.artifacts.publish_adapter(source, {"base_id": base.base_id})
        return self.artifacts.open_adapter(made.id, made.digest, base)

    def _next(self) -> Path:
        self._made += 1
        return self.folder / f"source-{self._made}"


def merged(base: VerifiedBase, adapter: VerifiedAdapter | None) -> Backbone:
    """What the referee scores with."""
    backbone = load_backbone(base.path / "model", torch.device("cpu"), torch.float32)
    if adapter is None:
        return backbone
    tensors = {name: torch.from_numpy(tensor) for name, tensor in adapter.tensors.items()}
    return merge_lora(backbone, tensors, adapter.config["lora_alpha"] / adapter.config["r"])


def codes(items: int, seed: int, most: tuple[int, ...] = (12, 9, 7, 5)) -> np.ndarray:
    """int16 [items, 4], with prefixes that are shared at every level."""
    return np.random.default_rng(seed).integers(0, most, size=(items, LEVELS)).astype(np.int16)


def history(items: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, CODES, size=(items, LEVELS)).astype(np.int16)
