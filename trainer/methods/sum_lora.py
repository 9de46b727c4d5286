"""SumLoRA (paper eq. 5 with alpha_i = 1): W0 + s sum_i norm(B_i) norm(A_i) + s B_t A_t over past adapters i."""

from trainer.lora import LoraBackbone, LoraTensors
from trainer.methods.base import Adapter, Covariance, Stage
from trainer.methods.cumulative import (
    Cumulative,
    begin_from,
    normalised,
    own_state,
    stack,
)


class SumLora(Cumulative):
    """See Cumulative."""

    family = "sum-lora"

    def begin(self, lora: LoraBackbone, incumbent: Adapter | None, covariance: Covariance) -> Stage:
        past = self._past(lora, incumbent)
        parameters = begin_from(lora, past, self._inherit)
        frozen: list[LoraTensors] = [normalised(adapter) for adapter in past]
        lora.compose = lambda: stack(lora.modules, [*frozen, lora.parameters])
        return Stage(parameters, lora.compose, continues=not past, finish=lambda: own_state(past, lora, self._scope))
