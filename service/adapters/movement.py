"""How far an adapter moved each weight of its base, measured against the adapter it was trained from. NumPy only."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.adapters.lora import PEFT_PREFIX, Dimensions, product_norm

Tensors = Mapping[str, NDArray[np.float32]]


class Against(StrEnum):
    """What a movement is divided by."""

    PARENT = "parent"
    """The norm of the parent's update of the same weight."""
    BASE = "base"
    """The norm of the base's weight, where there is no parent."""
    NOTHING = "nothing"
    """Nothing: no parent, and the base's manifest gives no norms. The movement is a norm itself."""


@dataclass(frozen=True, slots=True)
class Update:
    """A LoRA as it is added to the base: scale * B A. tensors: PEFT name -> A [r, columns] or B [rows, r]."""

    tensors: Tensors
    scale: float

    @classmethod
    def of(cls, config: Mapping[str, Any], tensors: Tensors) -> "Update":
        """config: a checked adapter_config.json."""
        return cls(tensors, config["lora_alpha"] / config["r"])

    @property
    def idle(self) -> bool:
        """Whether it leaves the base as it is, as an adapter does that was made and not trained."""
        return not any(tensor.any() for name, tensor in self.tensors.items() if name.endswith(".lora_B.weight"))

    def pair(self, module: str) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """(A, scale * B) of a module, None where it is not adapted."""
        a, b = (self.tensors.get(f"{PEFT_PREFIX}{module}.lora_{side}.weight") for side in "AB")
        return None if a is None or b is None else (a, np.float32(self.scale) * b)


@dataclass(frozen=True, slots=True)
class Movement:
    """layers x modules. layers: numbers in the names of modules, rising, -1 for a module outside any layer.

    values: (layer, module) -> the movement, None where there is nothing to divide by (the parent left it alone).
    """

    against: Against
    layers: tuple[int, ...]
    modules: tuple[str, ...]
    values: Mapping[tuple[int, str], float | None]

    @property
    def highest(self) -> float:
        return max((value for value in self.values.values() if value is not None), default=0.0)


def measure(update: Update, parent: Update | None, dimensions: Dimensions) -> Movement:
    """||s B A - s' B' A'|| / ||s' B' A'|| (Frobenius) of every module that either adapts; no product is formed.

    Without a parent, or with one that is idle, ||s B A|| / ||W||, W the base's weight. What differs by less than 1e-7
    of the norms reads as noise.
    """
    if parent is not None and parent.idle:
        parent = None
    against = Against.PARENT if parent is not None else Against.BASE if dimensions.norms else Against.NOTHING
    values: dict[tuple[int, str], float | None] = {}
    for name in dimensions.modules:
        new, old = update.pair(name), None if parent is None else parent.pair(name)
        if new is None and old is None:
            continue
        if against is Against.PARENT:
            below = 0.0 if old is None else product_norm(*old)
        else:
            below = dimensions.norms.get(name, 0.0) if against is Against.BASE else 1.0
        values[place_of(name)] = _difference(new, old) / below if below else None
    layers = tuple(sorted({layer for layer, _ in values}))
    modules = tuple(dict.fromkeys(module for _, module in values))
    return Movement(against, layers, modules, values)


def place_of(name: str) -> tuple[int, str]:
    """(layer, name within it) of a module: `model.layers.3.mlp.up_proj` is (3, mlp.up_proj); -1 without a number."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdecimal():
            return int(part), ".".join(parts[i + 1 :]) or name
    return -1, name


Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


def _difference(new: Pair | None, old: Pair | None) -> float:
    """||B A - B' A'||: one product of the two stacked, [B, -B'] [A; A']."""
    if new is None or old is None:
        only = new or old
        return 0.0 if only is None else product_norm(*only)
    a = np.concatenate([new[0], old[0]])
    b = np.concatenate([new[1], -old[1]], axis=1)
    return product_norm(a, b)
