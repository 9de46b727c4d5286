"""What goes into each adapted layer over a window: the second moments from which InfLoRA takes its directions."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.decoder import decode_tokens, place
from trainer.examples import TrainingSequence
from trainer.group import ALONE, Group
from trainer.layout import lay_out
from trainer.lora import LoraBackbone


@torch.no_grad()
def input_covariance(
    lora: LoraBackbone,
    sequences: Sequence[TrainingSequence],
    codes: NDArray[np.int16],
    *,
    batch_size: int = 64,
    group: Group = ALONE,
    on_batch: Callable[[], object] = lambda: None,
) -> dict[str, Tensor]:
    """Mean of x x^T over the tokens of `sequences` (padding left out), per adapted module, float64 [d_in, d_in].

    The model is asked as `lora` composes it now, without dropout. group: each rank takes its share of the sequences.
    on_batch: called after each batch.
    """
    total: dict[str, Tensor] = {}
    tokens_seen = 0
    ordered = sorted(sequences, key=lambda sequence: len(sequence.rows))
    was_training = lora.backbone.model.training
    lora.backbone.model.train(False)
    real = torch.empty(0, dtype=torch.bool)

    def observe(module: str, x: Tensor) -> None:
        own = x.reshape(-1, x.shape[-1])[real].double()
        product = own.T @ own
        if module in total:
            total[module].add_(product)
        else:
            total[module] = product

    lora.observe(observe)
    try:
        for first in range(0, len(ordered), batch_size * group.size):
            together = ordered[first : first + batch_size * group.size]
            part = group.share(together)
            layout = lay_out(lora.backbone.prompt, part or together[:1], codes)
            real = torch.from_numpy(layout.real.reshape(-1) & bool(part)).to(lora.backbone.device)
            tokens_seen += int(real.sum())
            decode_tokens(lora.backbone, place(layout, lora.backbone.device))
            on_batch()
    finally:
        lora.observe(None)
        lora.backbone.model.train(was_training)
    group.add_up(list(total.values()))
    tokens_seen = int(group.sums([tokens_seen])[0])
    return {module: product.div_(max(tokens_seen, 1)) for module, product in total.items()}
