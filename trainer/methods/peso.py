"""PESO (paper eq. 12): single evolving LoRA with a per-group softmax-KL proximal to its previous state."""

from service.settings import GroupBy
from trainer.fit import Penalty
from trainer.lora import LoraBackbone
from trainer.methods.base import State
from trainer.proximal import SoftmaxKL


class Peso:
    name = "peso"

    def __init__(self, weight: float, group_by: GroupBy) -> None:
        self.weight = weight
        self._group_by = group_by

    def start(self, lora: LoraBackbone, previous: State | None) -> Penalty | None:
        if previous is not None:
            lora.load(previous)
        anchor = lora.tensors()  # without a previous state: the fresh adapter, which changes nothing
        proximal = SoftmaxKL({name: t.to(lora.backbone.device) for name, t in anchor.items()}, self._group_by)
        return lambda: proximal(lora.parameters)
