"""Pretrain: what was learnt on D_1 serves for ever. The row that says what any learning is worth."""

from trainer.lora import LoraBackbone
from trainer.methods.base import Adapter, Covariance, Stage


class Pretrain:
    name = "pretrain"

    def rank(self, incumbent: Adapter | None, default: int) -> int:
        return incumbent.rank if incumbent else default

    def begin(self, lora: LoraBackbone, incumbent: Adapter | None, covariance: Covariance) -> Stage:
        return Stage((), lora.compose)
