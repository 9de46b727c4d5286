"""Single evolving LoRA (paper eq. 4): start from the previous state, train freely."""

from trainer.fit import Penalty
from trainer.lora import LoraBackbone
from trainer.methods.base import State


class SingleEvolving:
    name = "single-evolving"
    weight = 0.0

    def start(self, lora: LoraBackbone, previous: State | None) -> Penalty | None:
        if previous is not None:
            lora.load(previous)
        return None
