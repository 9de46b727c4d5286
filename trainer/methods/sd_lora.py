"""SD-LoRA (paper eq. 5): SumLoRA with a learnable magnitude alpha_i for each past adapter.

One magnitude per past adapter and module, since eq. 5 is written for one weight; 1.0 when an adapter becomes past, then
trained in every window. They are trained with the window's own A and B and never decayed.
"""

import torch
from torch import Tensor, nn

from trainer.lora import LoraBackbone, LoraTensors
from trainer.methods.base import Adapter, Covariance, Stage, State
from trainer.methods.cumulative import (
    Cumulative,
    Scope,
    begin_from,
    normalised,
    own_state,
    stack,
)


class SdLora(Cumulative):
    """See Cumulative."""

    family = "sd-lora"

    def begin(self, lora: LoraBackbone, incumbent: Adapter | None, covariance: Covariance) -> Stage:
        past = self._past(lora, incumbent)
        parameters = begin_from(lora, past, self._inherit)
        frozen: list[LoraTensors] = [normalised(adapter) for adapter in past]
        kept = incumbent.state if incumbent and incumbent.method == self.name and self._scope is Scope.ALL else {}
        magnitudes = [self._magnitudes(lora, kept, number) for number in range(len(past))]
        lora.compose = lambda: stack(lora.modules, [*frozen, lora.parameters], magnitudes)

        def finish() -> State:
            learnt = {
                _key(number, module): value.detach().float().cpu().reshape(1)
                for number, own in enumerate(magnitudes)
                for module, value in own.items()
            }
            return {**own_state(past, lora, self._scope), **(learnt if self._scope is Scope.ALL else {})}

        return Stage(
            [*parameters, *(value for own in magnitudes for value in own.values())],
            lora.compose,
            continues=not past,
            finish=finish,
        )

    def _magnitudes(self, lora: LoraBackbone, kept: State, number: int) -> dict[str, nn.Parameter]:
        def first(module: str) -> Tensor:
            found = kept.get(_key(number, module))
            return torch.ones(()) if found is None else found.reshape(()).clone()

        return {module: nn.Parameter(first(module).to(lora.backbone.device)) for module in lora.modules}


def _key(number: int, module: str) -> str:
    return f"magnitude.{number:04d}/{module}"
