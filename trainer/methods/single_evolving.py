"""Single evolving LoRA (paper eq. 4): start from the previous state, train freely."""

from trainer.lora import LoraBackbone
from trainer.methods.base import Adapter, Covariance, Stage, evolve


class SingleEvolving:
    name = "single-evolving"

    def rank(self, incumbent: Adapter | None, default: int) -> int:
        return incumbent.rank if incumbent else default

    def begin(self, lora: LoraBackbone, incumbent: Adapter | None, covariance: Covariance) -> Stage:
        return Stage(evolve(lora, incumbent), lora.compose)
