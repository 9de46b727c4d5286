"""Interactions -> blocks: by time, or with users kept apart (METHODS.md, settings of the paper).

Pure: both take columns in time order and say for each interaction which block it falls into, 0 being D_1.
"""

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from service.errors import DatasetError

Int64 = NDArray[np.int64]


class Split(StrEnum):
    CHRONOLOGICAL = "chronological"
    """The first `base_share` of all interactions is D_1, the rest is cut into equal parts."""
    USER_DISJOINT = "user-disjoint"
    """The control: users partitioned at random, blocks as large as the chronological ones, each user's order kept."""


def block_sizes(interactions: int, blocks: int, base_share: float) -> Int64:
    """int64 [blocks]: interactions in each block; `base_share` of all in the first, the others alike within one.

    Raises DatasetError when there are too few interactions for that many blocks, or less than two blocks.
    """
    if blocks < 2 or not 0 < base_share < 1:
        raise DatasetError(
            f"{blocks} blocks with a share of {base_share} for the first cannot be cut; take at least 2 blocks and a "
            "share between 0 and 1"
        )
    base = round(interactions * base_share)
    edges = base + (interactions - base) * np.arange(blocks) // (blocks - 1)
    sizes = np.diff(edges, prepend=0).astype(np.int64)
    if sizes.min() < 1:
        raise DatasetError(f"{interactions} interactions are too few for {blocks} blocks; give more")
    return sizes


def chronological(interactions: int, blocks: int, base_share: float) -> Int64:
    """int64 [interactions]: each one's block, for interactions in time order."""
    return np.repeat(np.arange(blocks), block_sizes(interactions, blocks, base_share))


def user_disjoint(user: Int64, blocks: int, base_share: float, seed: int) -> Int64:
    """int64 [interactions]: each one's block, the same for all of a user's. user: int64 [interactions], from 0.

    Users are shuffled and cut where the sum of their interactions comes nearest to each chronological boundary, so a
    boundary is off by at most half of one user's interactions, unless a block would be left without a user.
    Raises DatasetError as block_sizes does, and for fewer users than blocks.
    """
    edges = np.cumsum(block_sizes(len(user), blocks, base_share))[:-1]
    counts = np.bincount(user)
    users = np.flatnonzero(counts)
    if len(users) < blocks:
        raise DatasetError(f"{len(users)} users cannot be partitioned into {blocks} blocks; give more")
    shuffled = np.random.default_rng(seed).permutation(users)
    sums = np.concatenate([[0], np.cumsum(counts[shuffled])])
    block_of = np.zeros(len(counts), dtype=np.int64)
    cut = 0
    for number, edge in enumerate(edges.tolist(), 1):
        nearest = int(np.abs(sums - edge).argmin())
        cut = min(max(nearest, cut + 1), len(users) - blocks + number)  # leaves a user to every block on either side
        block_of[shuffled[cut:]] = number
    return block_of[user]
