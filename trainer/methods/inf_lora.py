"""InfLoRA (METHODS.md, LoRA family): W0 + s sum_i B_i A_i + s B_t A_t, with A_t chosen from the inputs and frozen.

A_t spans the leading input directions of the window that past windows do not use, so that what B_t learns there leaves
them alone. What they use is kept per module as an orthonormal basis M (DualGPM): of the directions used or, once those
are more than half, of what is left.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.lora import LoraBackbone, LoraTensors, names_of
from trainer.methods.base import Adapter, Covariance, Stage, State
from trainer.methods.cumulative import (
    Cumulative,
    Scope,
    own_state,
    stack,
)

FIRST_ENERGY, LAST_ENERGY = 0.95, 1.0  # lamb and lame of its authors
WINDOWS = 5
"""T of the paper. A service's windows have no last one: the share of energy kept rises to the fifth and stays there,
below LAST_ENERGY, since a full memory would leave no direction to learn in."""


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """basis: float64 [d, k], orthonormal; of the directions in use, or (free) of those that are left."""

    basis: Tensor
    free: bool

    def unused(self, h: Tensor) -> Tensor:
        """The part of H that past windows do not span."""
        inside = self.basis @ (self.basis.T @ h)
        return inside if self.free else h - inside


def extend(memory: Memory | None, h: Tensor, energy: float) -> Memory:
    """The memory after a window whose inputs have covariance `h` (float64 [d, d]), holding `energy` of it.

    When more than half of the directions are in use, the basis becomes that of the rest.
    """
    d = len(h)
    left, values, _ = torch.linalg.svd(h if memory is None else memory.unused(h))
    squares = values**2
    total = float((torch.linalg.svdvals(h) ** 2).sum()) or 1.0
    share = squares / total
    if memory is not None and memory.free:
        return _shrink(memory, left, share, energy)
    held = 0.0 if memory is None else 1 - float(share.sum())
    reached = held + torch.cumsum(share, 0)
    count = 0 if held >= energy else min(int((reached < energy).sum()) + 1, d)
    if memory is None:
        count, basis = max(count, 1), left[:, : max(count, 1)]
    else:
        basis = torch.cat([memory.basis, left[:, :count]], dim=1)[:, :d]
    if basis.shape[1] <= d / 2:
        return Memory(basis, False)
    return Memory(torch.linalg.svd(basis)[0][:, basis.shape[1] :], True)


def _shrink(memory: Memory, left: Tensor, share: Tensor, energy: float) -> Memory:
    """Take the window's leading directions out of those left until at most 1 - energy of it lies in the rest."""
    outside = float(share.sum())
    if outside < 1 - energy:
        return memory
    remaining = outside - torch.cumsum(share, 0)
    count = min(int((remaining >= 1 - energy).sum()) + 1, memory.basis.shape[1])
    taken = left[:, :count]
    rest = memory.basis - taken @ (taken.T @ memory.basis)
    return Memory(torch.linalg.svd(rest)[0][:, : memory.basis.shape[1] - count], True)


class InfLora(Cumulative):
    """See Cumulative; A_t is always new."""

    family = "inf-lora"

    def begin(self, lora: LoraBackbone, incumbent: Adapter | None, covariance: Covariance) -> Stage:
        past = self._past(lora, incumbent)
        state = incumbent.state if incumbent and incumbent.method == self.name else {}
        number, memories = _recall(state, lora.backbone.device)
        if incumbent is not None:
            served: LoraTensors = {name: tensor.to(lora.backbone.device) for name, tensor in incumbent.tensors.items()}
            lora.compose = lambda: served
        before = covariance()  # under the model that serves
        own: dict[str, Tensor] = {}
        for module, h in before.items():
            memory = memories.get(module)
            left, values, _ = torch.linalg.svd(h if memory is None else memory.unused(h))
            # What is left may have fewer than r directions; a memory kept in float32 leaves some 1e-7 of those in use.
            some = values > 1e-6 * float(torch.linalg.matrix_norm(h, 2))
            directions = left[:, some][:, : lora.rank]
            a_name, b_name = names_of(module)
            own[a_name] = torch.zeros_like(lora.parameters[a_name])
            own[a_name][: directions.shape[1]] = directions.T / 3**0.5
            own[b_name] = past[-1][b_name] if self._inherit and past else torch.zeros_like(lora.parameters[b_name])
        lora.load(own)
        for module in lora.modules:
            lora.parameters[names_of(module)[0]].requires_grad_(False)
        lora.compose = lambda: stack(lora.modules, [*past, lora.parameters])

        def finish() -> State:
            energy = FIRST_ENERGY + (LAST_ENERGY - FIRST_ENERGY) * min(number, WINDOWS - 1) / WINDOWS
            kept = {module: extend(memories.get(module), h, energy) for module, h in covariance().items()}
            return {**own_state(past, lora, self._scope), **_remember(number + 1, kept)}

        return Stage(
            [lora.parameters[names_of(module)[1]] for module in lora.modules],
            lora.compose,
            continues=not past or (self._scope is Scope.ALL and not self._inherit),
            finish=finish,
        )


def _recall(state: State, device: torch.device) -> tuple[int, dict[str, Memory]]:
    """How many windows were learnt, and each module's memory."""
    memories = {
        module: Memory(state[f"memory/{module}"].to(device).double(), bool(state[f"free/{module}"].item()))
        for module in (key.removeprefix("memory/") for key in state if key.startswith("memory/"))
    }
    return int(state["windows"].item()) if "windows" in state else 0, memories


def _remember(windows: int, memories: Mapping[str, Memory]) -> dict[str, Tensor]:
    state = {"windows": torch.tensor([float(windows)])}
    for module, memory in memories.items():
        state[f"memory/{module}"] = memory.basis.float().cpu().contiguous()
        state[f"free/{module}"] = torch.tensor([float(memory.free)])
    return state
