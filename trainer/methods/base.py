"""What a continual method is: how a window's learning starts from the adapter in service, and what it keeps after."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.fit import Penalty
from trainer.lora import LoraBackbone, LoraTensors, rank_of

State = Mapping[str, Tensor]  # name -> float32 tensor, kept beside the adapter as safetensors
Covariance = Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A plain LoRA and what the method that trained it keeps beside it.

    tensors: PEFT name -> float32 A [R, d_in], B [d_out, R]; what is served is W + scale * B A.
    state: empty for a method whose adapter says all.
    """

    tensors: LoraTensors
    scale: float
    method: str
    state: State = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, NDArray[np.float32]],
        config: Mapping[str, Any],
        method: str,
        state: Mapping[str, NDArray[np.float32]],
    ) -> "Adapter":
        """From a verified artifact's tensors, its adapter_config.json, and what was read of its state."""
        scale = config["lora_alpha"] / config["r"]
        return cls(_tensors(tensors), scale, method, _tensors(state))

    @property
    def rank(self) -> int:
        return rank_of(self.tensors)

    @property
    def changes_nothing(self) -> bool:
        """Whether every B is 0, as of the adapter that a base is published with where D_1 gave it none."""
        return not any(bool(tensor.any()) for name, tensor in self.tensors.items() if name.endswith(".lora_B.weight"))


def _tensors(arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """One window under one method, ready to train.

    parameters: what trains; empty: nothing does. compose: the LoRA in force, from the parameters, differentiable.
    penalty: added to the loss `weight` times, or times what makes its share of the first step's gradient `weight`
    (relative). continues: the starting point scores as the adapter in service does, so that no better epoch means no
    change. finish: after training, what is to be kept beside the adapter.
    """

    parameters: Sequence[nn.Parameter]
    compose: Callable[[], LoraTensors]
    continues: bool = True
    penalty: Penalty | None = None
    weight: float = 0.0
    relative: bool = False
    finish: Callable[[], State] = dict


class Method(Protocol):
    """One continual method, without memory of its own: everything it needs of the past is in the incumbent."""

    @property
    def name(self) -> str: ...

    def rank(self, incumbent: Adapter | None, default: int) -> int:
        """Of the A and B that will train."""
        ...

    def begin(self, lora: LoraBackbone, incumbent: Adapter | None, covariance: Covariance) -> Stage:
        """Initialise `lora` from the adapter in service (None: the base alone).

        covariance: mean of x x^T over the window's tokens, per adapted module [d_in, d_in] float64, under the model as
        `lora` composes it at the time of the call.
        """
        ...


def evolve(lora: LoraBackbone, incumbent: Adapter | None) -> list[nn.Parameter]:
    """Start from the incumbent's A and B, whatever trained them, and train them all (paper eq. 4)."""
    if incumbent is not None:
        lora.load(incumbent.tensors)
    return list(lora.parameters.values())
