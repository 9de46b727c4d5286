"""A hand-made world of two tastes: users take items of their own taste's block only."""

import numpy as np
import torch

from trainer.examples import Examples, UserStream, build_examples
from trainer.two_tower import Positives, training_positives

CPU = torch.device("cpu")


def quiet(done: int, total: int) -> None:
    """A progress report to nobody."""


def tastes(users: range, items: range, groups: int, window: int, seed: int) -> list[UserStream]:
    """Each user takes `window` items of one group of consecutive items, in any order; user u of group u mod groups."""
    random = np.random.default_rng(seed)
    own = np.array_split(np.arange(items.start, items.stop), groups)
    none = np.zeros(0, dtype=np.int64)
    return [UserStream(f"u{u:03}", none, random.permutation(own[u % groups])[:window]) for u in users]


def block_of(streams: list[UserStream], users: tuple[str, ...]) -> tuple[Positives, Examples]:
    return (
        training_positives(streams, users, min_events=3),
        build_examples(streams, history_items=20, min_events=3),
    )
