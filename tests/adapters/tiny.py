"""The smallest base and adapter that are real: two layers, hidden size 4, written with NumPy."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from service.adapters import service
from service.adapters.artifacts import ArtifactStore, Published
from service.adapters.lora import Dimensions, expected_shapes
from service.adapters.repository import NewAdapter, NewBase
from service.adapters.states import AdapterState
from service.kit.clock import Clock
from service.kit.db import Database

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4,
    "intermediate_size": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": None,
    "r": 2,
    "lora_alpha": 4,
    "target_modules": TARGETS,
    "bias": "none",
    "modules_to_save": None,
    "use_dora": False,
    "rank_pattern": {},
    "megatron_core": "megatron.core",
}
EARLIER = datetime(2026, 2, 1, tzinfo=UTC)

Tensors = dict[str, NDArray[Any]]


def base_folder(path: Path, *, value: float = 0.5, **changes: Any) -> Path:
    """An unpublished base; another `value` gives another base."""
    (path / "model").mkdir(parents=True)
    (path / "codec").mkdir()
    (path / "model" / "config.json").write_text(json.dumps(MODEL | changes))
    save_file({"embed": np.full((3, 4), value, np.float32)}, path / "model" / "model.safetensors")
    (path / "codec" / "codec.json").write_text("{}")
    save_file({"codebooks": np.zeros((4, 8, 2), np.float32)}, path / "codec" / "codec.safetensors")
    return path


def adapter_tensors(value: float = 0.25) -> Tensors:
    """Every LoRA tensor of the tiny base, each filled with `value`."""
    shapes = expected_shapes(TARGETS, CONFIG["r"], Dimensions.of(MODEL))
    return {name: np.full(shape, value, np.float32) for name, shape in shapes.items()}


def adapter_folder(path: Path, tensors: Tensors | None = None, **changes: Any) -> Path:
    """An unpublished adapter."""
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    save_file(adapter_tensors() if tensors is None else tensors, path / "adapter_model.safetensors")
    return path


class Shelf:
    """Publishes and registers tiny bases and adapters for one test."""

    def __init__(self, folder: Path, database: Database, clock: Clock) -> None:
        self.folder, self.database, self.clock = folder, database, clock
        self.artifacts = ArtifactStore(folder / "artifacts")
        self._made = 0

    def _next(self) -> Path:
        self._made += 1
        return self.folder / f"source-{self._made}"

    def publish_base(self, value: float = 0.5) -> Published:
        return self.artifacts.publish_base(base_folder(self._next(), value=value), {})

    def base(self, value: float = 0.5) -> str:
        """A registered base."""
        made = self.publish_base(value)
        service.register_base(self.database, self.clock, NewBase(made.id, made.digest, EARLIER))
        return made.id

    def active_base(self, value: float = 0.5) -> str:
        """A base that serves alone."""
        base_id = self.base(value)
        service.activate_base(self.database, self.clock, base_id, actor="test")
        return base_id

    def publish_adapter(self, base_id: str, value: float, window_id: int = 0) -> Published:
        source = adapter_folder(self._next(), adapter_tensors(value))
        return self.artifacts.publish_adapter(source, {"base_id": base_id}, window_id)

    def candidate(self, base_id: str, value: float, window_id: int | None = None) -> NewAdapter:
        """A published adapter whose every weight is `value`, not registered."""
        made = self.publish_adapter(base_id, value, window_id or 0)
        return NewAdapter(made.id, base_id, made.digest, "peso", window_id=window_id)

    def adapter(self, base_id: str, value: float, state: AdapterState = AdapterState.PASSED) -> str:
        """A registered adapter whose every weight is `value`."""
        new = self.candidate(base_id, value)
        service.register_adapter(self.database, self.clock, new, state)
        return new.adapter_version

    def weights_of(self, version: str) -> Path:
        return self.artifacts.root / "adapters" / version / "adapter_model.safetensors"

    def damage(self, version: str) -> bytes:
        """Flip one bit of an adapter's weights; returns the good bytes."""
        path = self.weights_of(version)
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        return good
