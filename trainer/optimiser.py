"""The optimiser of all training, and its learning rate over a training's steps."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.sharding import is_sharded


def make_optimiser(
    parameters: Sequence[nn.Parameter], learning_rate: float, weight_decay: float, *, captured: bool = False
) -> torch.optim.AdamW:
    """AdamW without decay for norms and biases; sharded parameters apart, as one kernel takes one kind.

    captured: its steps can be, so its rates are tensors on the parameters' device.
    """
    found: dict[tuple[bool, bool], list[nn.Parameter]] = {(True, False): [], (False, False): []}
    for parameter in parameters:
        found.setdefault((parameter.ndim > 1, is_sharded(parameter)), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": own, "weight_decay": weight_decay if kind[0] else 0.0} for kind, own in found.items()],
        lr=torch.tensor(learning_rate, device=parameters[0].device) if captured else learning_rate,
        betas=(0.9, 0.98),
        fused=True,
        capturable=captured,
    )


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for part in optimiser.param_groups:
        if isinstance(part["lr"], Tensor):
            part["lr"].fill_(rate)
        else:
            part["lr"] = rate


def schedule(step: int, total: int, warmup: float) -> float:
    """Linear warm-up, then cosine to 0; a factor of the peak rate."""
    warm = max(1, round(total * warmup))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
