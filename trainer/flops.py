"""Floating-point operations of training a LoRA on a frozen backbone: the products that any implementation must do."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from service.catalog.trie import CODES, LEVELS
from service.generation.backbone import Backbone
from trainer.examples import TrainingSequence
from trainer.layout import lay_out, visible
from trainer.lora import adaptable


def training_flops(
    backbone: Backbone, sequences: Sequence[TrainingSequence], codes: NDArray[np.int16]
) -> tuple[int, float]:
    """Tokens processed without padding, and the operations of forward and backward pass over them.

    A frozen weight takes 2 a token and entry forward and 2 backward (the input's gradient; none of the weight). Scores
    and values of each pair of tokens that see each other: 4 a layer and channel forward, 8 backward. The head is that
    of each target's 4 levels. LoRA's own products, norms and embeddings, some per cent, are left out.
    """
    config = backbone.model.config
    weights = sum(layer.weight.numel() for layer in adaptable(backbone.model).values())
    tokens = pairs = targets = 0
    for sequence in sequences:
        layout = lay_out(backbone.prompt, [sequence], codes)
        own = int(layout.real.sum())
        tokens += own
        targets += len(layout.labels)
        if layout.branches is None:
            pairs += own * (own + 1) // 2
        else:
            _, owner, reach = (torch.from_numpy(part) for part in layout.branches)
            pairs += int(visible(owner, reach)[torch.from_numpy(layout.real)].sum())
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    attention = 12 * config.num_hidden_layers * width * pairs
    head = 4 * LEVELS * CODES * config.hidden_size * targets
    return tokens, float(4 * weights * tokens + attention + head)
