"""A training's tensors between two steps, to be kept and set again: weights, the best so far, optimiser, generators."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.examples import Case, TrainingSequence
from trainer.group import Group
from trainer.sharding import placed_like, whole

FORMAT = 1
"""Of a checkpoint; a change of what is trained, or of how it is kept, wants the next number."""


def captured(
    parameters: Sequence[nn.Parameter], optimiser: torch.optim.Optimizer, best: Sequence[Tensor], group: Group
) -> dict[str, Tensor]:
    """Name -> whole tensor, on the CPU. Collective."""
    found: dict[str, Tensor] = {}
    for number, (parameter, kept) in enumerate(zip(parameters, best, strict=True)):
        tensors = {"now": parameter, "best": kept} | optimiser.state.get(parameter, {})
        for name, tensor in tensors.items():
            found[f"{name}.{number}"] = whole(tensor).cpu()
    for rank, state in enumerate(group.gather(torch.get_rng_state())):
        found[f"generator.{rank}"] = state
    if group.device.type == "cuda" or any(p.is_cuda for p in parameters):
        for rank, state in enumerate(group.gather(torch.cuda.get_rng_state())):
            found[f"cuda_generator.{rank}"] = state
    return found


def circumstances(
    training: Sequence[TrainingSequence],
    validation: Sequence[Case],
    codes: NDArray[np.int16],
    config: object,
    device: torch.device,
    group: Group,
) -> tuple[object, ...]:
    """What decides the numbers of any training: data as the model sees them, settings, device, processes, torch."""
    return (
        FORMAT,
        [(codes[sequence.rows], sequence.first_target) for sequence in training],
        [(codes[case.history], codes[case.target]) for case in validation],
        repr(config),
        (device.type, group.size, group.sharded, torch.__version__, torch.get_num_threads()),
    )


@torch.no_grad()
def restored(
    tensors: Mapping[str, Tensor], parameters: Sequence[nn.Parameter], optimiser: torch.optim.Optimizer, group: Group
) -> list[Tensor]:
    """Set everything as `captured` found it, on this rank; returns the best so far."""
    best = []
    for number, parameter in enumerate(parameters):
        parameter.copy_(placed_like(tensors[f"now.{number}"], parameter))
        best.append(placed_like(tensors[f"best.{number}"], parameter))
        if f"step.{number}" in tensors:
            step = tensors[f"step.{number}"].to(parameter.device)
            moments = {n: placed_like(tensors[f"{n}.{number}"], parameter) for n in ("exp_avg", "exp_avg_sq")}
            optimiser.state[parameter] = {"step": step, **moments}
    torch.set_rng_state(tensors[f"generator.{group.rank}"])
    if f"cuda_generator.{group.rank}" in tensors:
        torch.cuda.set_rng_state(tensors[f"cuda_generator.{group.rank}"])
    return best
