"""LoRA on a backbone through peft, and its plain PEFT folder that every engine can load."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from service.generation.backbone import Backbone
from service.settings import Settings

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_ADAPTER = ".default"  # peft's name for the only adapter


class LoraBackbone:
    """A backbone with trainable LoRA A/B on every linear layer of its blocks; everything else is frozen."""

    def __init__(self, backbone: Backbone, *, rank: int, alpha: int, dropout: float, seed: int) -> None:
        """Fresh: A kaiming, B 0 (it changes nothing). Wraps the model in place; `unwrap` undoes it."""
        torch.manual_seed(seed)
        self.rank, self.alpha = rank, alpha
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=list(TARGET_MODULES),
            bias="none",
            task_type="CAUSAL_LM",
        )
        with warnings.catch_warnings():
            # peft 0.21 asks transformers 5.23 for an attribute by its old name.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            self._peft = get_peft_model(backbone.model, config)
        self.backbone = Backbone(backbone.model, backbone.first_code_token)

    @classmethod
    def of(cls, backbone: Backbone, settings: Settings) -> "LoraBackbone":
        """With the rank, alpha, dropout and seed that the settings name."""
        return cls(
            backbone,
            rank=settings.lora_rank,
            alpha=settings.lora_alpha,
            dropout=settings.lora_dropout,
            seed=settings.seed,
        )

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """PEFT name -> the live parameter."""
        named = self._peft.named_parameters()
        return {name.replace(_ADAPTER, ""): p for name, p in named if p.requires_grad}

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def tensors(self) -> dict[str, Tensor]:
        """PEFT name -> a float32 copy."""
        return {name: p.detach().float().cpu().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, NDArray[np.float32] | Tensor]) -> None:
        """Set A and B. Raises ValueError, with nothing set, when names or shapes are not this model's."""
        own = self.parameters
        if own.keys() != tensors.keys():
            raise ValueError("the adapter adapts other modules than the base has")
        values = {name: torch.as_tensor(tensors[name]) for name in own}
        for name, value in values.items():
            if value.shape != own[name].shape:
                raise ValueError(f"{name} is {tuple(value.shape)}, the base wants {tuple(own[name].shape)}")
        for name, value in values.items():
            own[name].copy_(value)

    def unwrap(self) -> Backbone:
        """The backbone without LoRA; the adapter is gone from it."""
        self._peft.unload()
        return self.backbone


def save_adapter(folder: Path, tensors: Mapping[str, Tensor], *, rank: int, alpha: int, dropout: float) -> None:
    """Write adapter_config.json and adapter_model.safetensors as PEFT reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": list(TARGET_MODULES),
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
