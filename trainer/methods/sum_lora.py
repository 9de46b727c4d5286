"""SumLoRA (paper eq. 5 with alpha_i = 1): W0 + s sum_i norm(B_i) norm(A_i) + s B_t A_t over past adapters i."""

from trainer.lora import LoraBackbone, LoraTensors
from trainer.methods.base import Adapter, Covariance, Stage
from trainer.methods.cumulative import (
    Scope,
    begin_from,
    method_name,
    normalised,
    own_state,
    past_adapters,
    stack,
    to_device,
    trained_rank,
)


class SumLora:
    """scope: all past adapters or the latest only. inherit: A_t, B_t start from A_{t-1}, B_{t-1}, else fresh."""

    def __init__(self, scope: Scope, inherit: bool) -> None:
        self.name = method_name("sum-lora", scope, inherit)
        self._scope, self._inherit = scope, inherit

    def rank(self, incumbent: Adapter | None, default: int) -> int:
        return trained_rank(incumbent, self.name, self._scope, default)

    def begin(self, lora: LoraBackbone, incumbent: Adapter | None, covariance: Covariance) -> Stage:
        past = to_device(past_adapters(incumbent, self.name, self._scope), lora)
        parameters = begin_from(lora, past, self._inherit)
        frozen: list[LoraTensors] = [normalised(adapter) for adapter in past]
        lora.compose = lambda: stack(lora.modules, [*frozen, lora.parameters])
        return Stage(parameters, lora.compose, continues=not past, finish=lambda: own_state(past, lora, self._scope))
