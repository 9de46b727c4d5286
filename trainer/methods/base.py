"""What a continual method is: how the adapter of a window starts and what holds it back while it learns."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from trainer.fit import Penalty
from trainer.lora import LoraBackbone

State = Mapping[str, Tensor]  # PEFT name -> float32 tensor: the adapter in service


class Method(Protocol):
    """One continual method. `weight` multiplies the penalty."""

    name: str
    weight: float

    def start(self, lora: LoraBackbone, previous: State | None) -> Penalty | None:
        """Initialise `lora` from the adapter in service (None: the base alone) and return the proximal, if any."""
        ...
