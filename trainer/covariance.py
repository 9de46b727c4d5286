"""What goes into each adapted layer over a window: the second moments from which InfLoRA takes its directions."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.catalog.trie import LEVELS
from trainer.examples import TrainingSequence
from trainer.fit import token_matrix
from trainer.lora import LoraBackbone


@torch.no_grad()
def input_covariance(
    lora: LoraBackbone, sequences: Sequence[TrainingSequence], codes: NDArray[np.int16], *, batch_size: int = 64
) -> dict[str, Tensor]:
    """Mean of x x^T over the tokens of `sequences` (padding left out), per adapted module, float64 [d_in, d_in].

    The model is asked as `lora` composes it now, without dropout.
    """
    total: dict[str, Tensor] = {}
    tokens_seen = 0
    ordered = sorted(sequences, key=lambda sequence: len(sequence.rows))
    was_training = lora.backbone.model.training
    lora.backbone.model.train(False)
    real = torch.empty(0, dtype=torch.bool)

    def observe(module: str, x: Tensor) -> None:
        own = x[real].double()
        product = (own.T @ own).cpu()
        total[module] = total[module] + product if module in total else product

    lora.observe(observe)
    try:
        for first in range(0, len(ordered), batch_size):
            part = ordered[first : first + batch_size]
            tokens = torch.from_numpy(token_matrix(lora.backbone, part, codes)[:, :-1]).to(lora.backbone.device)
            lengths = torch.tensor([LEVELS * len(sequence.rows) for sequence in part], device=tokens.device)
            real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
            tokens_seen += int(real.sum())
            lora.backbone.decoder(input_ids=tokens, use_cache=False)
    finally:
        lora.observe(None)
        lora.backbone.model.train(was_training)
    return {module: product.to(lora.backbone.device) / max(tokens_seen, 1) for module, product in total.items()}
