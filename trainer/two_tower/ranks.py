"""Ranks of targets among the whole catalogue, many cases at once."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.examples import Case

_SCORES_AT_ONCE = 2**23  # 32 MiB of float32

Score = Callable[[int, int], Tensor]  # first and last case -> float32 [cases, items]


@torch.no_grad()
def target_ranks(score: Score, cases: Sequence[Case], known: Tensor, depth: int) -> NDArray[np.int64]:
    """int64 [cases]: 1-based rank of each target among all items but the case's `seen`, ties by row, 0 beyond depth.

    known: bool [items], on the device of the scores: items that the model has been trained on. The others' scores mean
    nothing, so they stand behind all known ones; so does what is not a number.
    """
    ranks = np.zeros(len(cases), dtype=np.int64)
    device, items = known.device, len(known)
    rows = torch.arange(items, device=device)
    lowest = torch.finfo(torch.float32).min
    step = max(1, _SCORES_AT_ONCE // max(items, 1))
    for first in range(0, len(cases), step):
        part = cases[first : first + step]
        scores = score(first, first + len(part)).nan_to_num(nan=lowest, neginf=lowest)
        scores = scores.masked_fill(~known, lowest)
        target = torch.tensor([case.target for case in part], device=device)[:, None]
        own = scores.gather(1, target)
        place = torch.from_numpy(np.repeat(np.arange(len(part)), [len(case.seen) for case in part])).to(device)
        scores[place, torch.from_numpy(np.concatenate([case.seen for case in part])).to(device)] = -torch.inf
        before = (scores > own) | ((scores == own) & (rows < target))
        ranks[first : first + len(part)] = 1 + before.sum(dim=1).cpu().numpy()
    return np.where(ranks <= depth, ranks, 0)
