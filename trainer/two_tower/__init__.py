"""Two-tower baselines and SASRec by name."""

from collections.abc import Sequence

import torch

from service.errors import ConfigurationError
from trainer.two_tower.base import LearnReport, Positives, Ranker, training_positives
from trainer.two_tower.ranker import Continual, LightGcnRanker
from trainer.two_tower.sasrec import SasRecRanker

NAMES = (*(method.value for method in Continual), SasRecRanker.name)

__all__ = ["NAMES", "LearnReport", "Positives", "Ranker", "make_ranker", "training_positives"]


def make_ranker(
    name: str, *, users: Sequence[str], items: int, history_items: int, seed: int, device: torch.device | str
) -> Ranker:
    """A ranker that has learnt nothing yet. Raises ConfigurationError listing the names.

    users: of all blocks. items: how many rows the catalogue has.
    """
    if name == SasRecRanker.name:
        return SasRecRanker(items, history_items, seed, torch.device(device))
    if name in NAMES:
        return LightGcnRanker(Continual(name), users, items, seed, torch.device(device))
    raise ConfigurationError(f"{name} is no two-tower method; choose one of {', '.join(NAMES)}")
