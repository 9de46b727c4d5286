"""Training sequences as one batch of tokens in which every target of a user is predicted in one pass.

Under a plain prompt items follow each other, so one causal sequence predicts them all. A prompt with text between or
behind the items does not: there the history is a trunk that all targets share, and each target is a branch (the text
behind the items, then the target's first codes) that sees the trunk up to its own history, and itself. What a branch
sees, and where it stands, is what a prompt of its own would show it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.catalog.trie import LEVELS
from service.generation.prompt import PAD, Prompt
from trainer.examples import TrainingSequence

Int64 = NDArray[np.int64]
TRUNK, PADDING = -1, -2
NO_LABEL = -100  # what torch's cross_entropy leaves out
ALIGNED = 16
"""Fused attention with a mask wants rows of a multiple of 8; fewer lengths also mean fewer kernels and buffers."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Padded on the right.

    tokens: int64 [batch, length]; real: bool [batch, length], False for padding. predicts: int64 [targets, 4], which of
    the batch's tokens, row after row, predicts each code of a target; labels: int64 [targets, 4], those codes, or
    NO_LABEL for targets that are padding.
    branches: None where plain causal attention is right; else positions, owner and reach, int64 [batch, length]: a
    token stands at its position and sees earlier tokens of the same owner and those of the trunk before `reach`.
    """

    tokens: Int64
    predicts: Int64
    labels: Int64
    real: NDArray[np.bool_]
    branches: tuple[Int64, Int64, Int64] | None


@dataclass(frozen=True, slots=True)
class Size:
    """Rows, length and targets that a batch is padded to, where it is smaller."""

    rows: int = 0
    length: int = 0
    targets: int = 0


AS_IT_IS = Size()


def lay_out(
    prompt: Prompt, batch: Sequence[TrainingSequence], codes: NDArray[np.int16], size: Size = AS_IT_IS
) -> Layout:
    """codes: int16 [catalogue rows, 4]."""
    longest = max(size.length, *(sequence_length(prompt, s) for s in batch), 0)
    size = Size(max(size.rows, len(batch)), longest, size.targets)
    return _plain(prompt, batch, codes, size) if prompt.is_plain else _branched(prompt, batch, codes, size)


def sequence_length(prompt: Prompt, sequence: TrainingSequence) -> int:
    """Tokens of one sequence, laid out."""
    items = len(sequence.rows)
    if prompt.is_plain:
        return prompt.trunk_length(items) - 1
    return prompt.trunk_length(items - 1) + _branch(prompt) * targets_of(sequence)


def targets_of(sequence: TrainingSequence) -> int:
    """How many of its items are predicted."""
    return len(sequence.rows) - sequence.first_target


def _branch(prompt: Prompt) -> int:
    return len(prompt.after) + LEVELS - 1


def visible(owner: Tensor, reach: Tensor) -> Tensor:
    """bool [batch, length, length], what each token (second axis) sees (third); each sees itself. See Layout."""
    place = torch.arange(owner.shape[1], device=owner.device)
    same = (owner[:, :, None] == owner[:, None, :]) & (place <= place[:, None])
    return same | ((owner == TRUNK)[:, None, :] & (place < reach[:, :, None]))


def _plain(prompt: Prompt, batch: Sequence[TrainingSequence], codes: NDArray[np.int16], padded: Size) -> Layout:
    """The token before code l of an item predicts it; the last code of all is never read."""
    fixed, length = len(prompt.before), padded.length
    shape = (padded.rows, length)
    tokens, real = np.full(shape, PAD, dtype=np.int64), np.zeros(shape, dtype=np.bool_)
    predicts, labels = [], []
    for i, sequence in enumerate(batch):
        own = prompt.encode(codes[sequence.rows])[:-1]
        tokens[i, : len(own)], real[i, : len(own)] = own, True
        items = np.arange(sequence.first_target, len(sequence.rows))
        predicts.append(i * length + fixed - 1 + LEVELS * items[:, None] + np.arange(LEVELS))
        labels.append(codes[sequence.rows[items]])
    return Layout(tokens, *_padded(predicts, labels, padded.targets), real, None)


def _branched(prompt: Prompt, batch: Sequence[TrainingSequence], codes: NDArray[np.int16], padded: Size) -> Layout:
    tail, size = len(prompt.after), _branch(prompt)
    length = -(-padded.length // ALIGNED) * ALIGNED
    shape = (padded.rows, length)
    tokens, owner = np.full(shape, PAD), np.full(shape, PADDING)
    positions, reach = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    predicts, labels = [], []
    place, levels, offsets = np.arange(max(size, length)), np.arange(LEVELS), prompt.offsets
    for i, sequence in enumerate(batch):
        trunk = prompt.trunk(codes[sequence.rows[:-1]])
        own = codes[sequence.rows[sequence.first_target :]].astype(np.int64)
        targets = np.arange(sequence.first_target, len(sequence.rows))
        seen = np.array([prompt.trunk_length(int(target)) for target in targets], dtype=np.int64)
        end = len(trunk) + size * len(targets)
        branches = np.concatenate([np.broadcast_to(prompt.after, (len(own), tail)), (own + offsets)[:, :-1]], axis=1)
        tokens[i, : len(trunk)], tokens[i, len(trunk) : end] = trunk, branches.reshape(-1)
        owner[i, : len(trunk)], owner[i, len(trunk) : end] = TRUNK, np.repeat(targets, size)
        reach[i, len(trunk) : end] = np.repeat(seen, size)
        positions[i, : len(trunk)] = place[: len(trunk)]
        positions[i, len(trunk) : end] = (seen[:, None] + place[:size]).reshape(-1)
        starts = len(trunk) + size * np.arange(len(targets))
        predicting = starts[:, None] + tail - 1 + levels
        if not tail:
            predicting[:, 0] = seen - 1
        predicts.append(i * length + predicting)
        labels.append(own)
    real = owner != PADDING
    return Layout(tokens, *_padded(predicts, labels, padded.targets), real, (positions, owner, reach))


def _padded(predicts: list[Int64], labels: list[NDArray[Any]], targets: int) -> tuple[Int64, Int64]:
    """The sequences' targets one after another, up to at least `targets` rows."""
    more = max(0, targets - sum(map(len, predicts)))
    nothing, unlabelled = np.zeros((more, LEVELS), np.int64), np.full((more, LEVELS), NO_LABEL)
    return np.concatenate([*predicts, nothing]), np.concatenate([*labels, unlabelled]).astype(np.int64)
