"""The referee: scores every item by full forward passes, with no cache, no trie and no beam."""

import numpy as np
import torch
from numpy.typing import NDArray

from service.catalog.trie import LEVELS
from service.generation.backbone import Backbone


@torch.inference_mode()
def score_items(
    backbone: Backbone, history: NDArray[np.int16], codes: NDArray[np.int16], batch_size: int = 256
) -> NDArray[np.float64]:
    """float64 [n]: sum over levels of log-softmax over that level's 256 codes, for each row of codes (int16 [n, 4])."""
    prompt = backbone.prompt.encode(history)
    offsets = backbone.prompt.offsets
    scores = np.empty(len(codes))
    for first in range(0, len(codes), batch_size):
        part = codes[first : first + batch_size].astype(np.int64)
        tokens = np.concatenate(
            [np.tile(prompt, (len(part), 1)), part[:, : LEVELS - 1] + offsets[: LEVELS - 1]], axis=1
        )
        hidden = backbone.decoder(
            input_ids=torch.from_numpy(tokens).to(backbone.device), use_cache=False
        ).last_hidden_state
        total = torch.zeros(len(part), dtype=torch.float64)
        for level in range(LEVELS):
            logits = backbone.level_logits(hidden[:, len(prompt) - 1 + level], level)
            logp = torch.log_softmax(logits.double(), dim=-1).cpu()
            total += logp.gather(1, torch.from_numpy(part[:, level : level + 1])).squeeze(1)
        scores[first : first + batch_size] = total.numpy()
    return scores
