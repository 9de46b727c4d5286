"""What a trained ranker of the backtest is, whatever it is made of: it learns block by block and ranks cases."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from service.errors import ConfigurationError, DatasetError
from trainer.examples import Case, Examples, Rows, UserStream, build_examples

Progress = Callable[[int, int], None]  # (epochs done, epochs at most)


@dataclass(frozen=True, slots=True, eq=False)
class Positives:
    """(user, item) pairs. user: int64 [n] into the backtest's users; item: int64 [n] catalogue rows."""

    user: Rows
    item: Rows


@dataclass(frozen=True, slots=True)
class LearnReport:
    """losses: mean training loss per epoch. best_epoch: the one that was kept, 0 = the state before the block."""

    losses: tuple[float, ...] = ()
    best_epoch: int = 0
    trainable_parameters: int = 0

    @property
    def epochs(self) -> int:
        """How many were run."""
        return len(self.losses)


class Ranker(Protocol):
    """One method over one data set with one seed."""

    name: str

    def learn(self, block: int, positives: Positives, examples: Examples, report: Progress) -> LearnReport:
        """Learn from block `block` (0 is D_1) alone; blocks come in order."""
        ...

    def ranks(self, cases: Sequence[Case], depth: int = 10) -> NDArray[np.int64]:
        """1-based rank of each case's target among all items that are not in its `seen`, 0 beyond depth."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that later blocks and ranks depend on: contiguous tensors of its own, on the CPU."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the place of the ranker that gave `state`. Raises ConfigurationError when it is of another shape."""
        ...


def training_positives(streams: Sequence[UserStream], users: Sequence[str], *, min_events: int) -> Positives:
    """The training targets of one block, user by user: exactly those of `build_examples` with the same streams.

    A training sequence does not name its user, so they are cut once more from the streams, by the same function.
    Raises DatasetError for a user who is not in `users`.
    """
    kept: list[UserStream] = []
    items: list[Rows] = []
    for stream in streams:
        whole = len(stream.earlier) + len(stream.window)
        for sequence in build_examples([stream], history_items=1, min_events=min_events, piece=max(1, whole)).training:
            kept.append(stream)
            items.append(sequence.rows[sequence.first_target :])
    places = user_places([stream.user_id for stream in kept], {user: i for i, user in enumerate(users)})
    none = np.zeros(0, dtype=np.int64)
    return Positives(np.repeat(places, [len(rows) for rows in items]), np.concatenate([none, *items]))


def user_places(user_ids: Sequence[str], place_of: Mapping[str, int]) -> Rows:
    """int64 [n]. Raises DatasetError for a user without a place."""
    try:
        return np.array([place_of[user_id] for user_id in user_ids], dtype=np.int64)
    except KeyError as error:
        raise DatasetError(
            f"user {error.args[0]!r} is not among the users of the data; make the ranker with all users of all blocks"
        ) from error


def own_copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU that share no memory, as safetensors wants them."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}


def check_state(state: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str) -> None:
    """Raises ConfigurationError unless `state` has the names and shapes of `own`."""
    if {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in own.items()}:
        raise ConfigurationError(
            f"the saved state does not fit {name} over this data; it was made with other users, items or settings: "
            "remove it and run from the first block"
        )
