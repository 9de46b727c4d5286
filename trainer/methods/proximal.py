"""Single evolving LoRA held near its previous state: PESO (paper eq. 12) and the alternatives of its figure 2."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from service.settings import GroupBy
from trainer.lora import LoraBackbone, LoraTensors
from trainer.methods.base import Adapter, Covariance, Stage, evolve
from trainer.proximal import Orthogonal, OutputKL, Quadratic, SoftmaxKL


class Regulariser(Protocol):
    """The distance of the current adapter from the previous one, a scalar."""

    def __call__(self, current: LoraTensors) -> Tensor: ...


class Proximal:
    """Evolves as single evolving LoRA does; the loss carries `weight` times the regulariser.

    relative: `weight` is the regulariser's share of the first step's gradient instead
    (trainer.proximal.first_step_weight), which carries over between backbones, ranks and groupings.
    """

    def __init__(
        self, name: str, weight: float, relative: bool, regulariser: Callable[[LoraTensors, LoraBackbone], Regulariser]
    ) -> None:
        self.name = name
        self._weight, self._relative, self._regulariser = weight, relative, regulariser

    def rank(self, incumbent: Adapter | None, default: int) -> int:
        return incumbent.rank if incumbent else default

    def begin(self, lora: LoraBackbone, incumbent: Adapter | None, covariance: Covariance) -> Stage:
        parameters = evolve(lora, incumbent)
        # Without a previous state the anchor is the fresh adapter, which changes nothing.
        previous = {name: p.detach().clone() for name, p in lora.parameters.items()}
        regulariser = self._regulariser(previous, lora)
        return Stage(
            parameters,
            lora.compose,
            penalty=lambda: regulariser(lora.parameters),
            weight=self._weight,
            relative=self._relative,
        )


def peso(weight: float, group_by: GroupBy = GroupBy.TENSOR, relative: bool = False) -> Proximal:
    """PESO: softmax-KL per group."""
    return Proximal("peso", weight, relative, lambda previous, _: SoftmaxKL(previous, group_by))


def rank_kl(weight: float, relative: bool = False) -> Proximal:
    """Softmax-KL with one softmax per rank."""
    return Proximal("rank-kl", weight, relative, lambda previous, _: SoftmaxKL(previous, GroupBy.RANK))


def l2(weight: float, relative: bool = False) -> Proximal:
    """The quadratic proximal with H = I (eq. 6)."""
    return Proximal("l2", weight, relative, lambda previous, _: Quadratic(previous, GroupBy.TENSOR, weighted=False))


def orthogonal(weight: float, relative: bool = False) -> Proximal:
    """Orthogonality to the previous adapter (O-LoRA)."""
    return Proximal("orthogonal", weight, relative, lambda previous, _: Orthogonal(previous))


def output_kl(weight: float, relative: bool = False) -> Proximal:
    """Softmax-KL of what the adapter adds to each module's output."""

    def make(previous: LoraTensors, lora: LoraBackbone) -> Regulariser:
        regulariser = OutputKL(previous, lora.scale)
        lora.observe(regulariser.observe, training_only=True)
        return regulariser

    return Proximal("output-kl", weight, relative, make)
