"""The blocks that a backtest learns from and is scored on: D_1, on which a base is built, then the increments."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray

from service.errors import DatasetError
from service.recommend.popularity import FAINTEST
from trainer.datasets import DatasetItem
from trainer.examples import Case, Rows, UserStream, build_examples


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Interactions of one block; each user's lie in time order.

    user: int64 [n] into BacktestData.users; item: int64 [n] catalogue rows; timestamp: float64 [n] unix seconds, or
    None where only the order is known.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    timestamp: NDArray[np.float64] | None

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True, slots=True, eq=False)
class BacktestData:
    """name: for people. digest: hex SHA-256 over what was read, the split and its seed. users: in order of their ids.

    items: in order of item_id, so that a position is a catalogue row. blocks: D_1 first. codes: int16 [items, 4], None
    where semantic IDs are to be fitted on D_1's items. notes: what was dropped or assumed, for the report.
    """

    name: str
    digest: str
    users: tuple[str, ...]
    items: tuple[DatasetItem, ...]
    blocks: tuple[Block, ...]
    codes: NDArray[np.int16] | None
    notes: tuple[str, ...]


def streams(data: BacktestData, t: int) -> tuple[UserStream, ...]:
    """The users with interactions in block t (0: D_1), in order of user id, with all of their earlier blocks' rows."""
    window_users, window = _by_user(data.blocks[t : t + 1])
    earlier_users, earlier = _by_user(data.blocks[:t])
    users, starts = np.unique(window_users, return_index=True)
    parts = np.split(window, starts[1:])
    low = np.searchsorted(earlier_users, users, side="left").tolist()
    high = np.searchsorted(earlier_users, users, side="right").tolist()
    return tuple(
        UserStream(data.users[user], earlier[a:b], part)
        for user, a, b, part in zip(users.tolist(), low, high, parts, strict=False)  # no users: one empty part
    )


def popularity_before(
    data: BacktestData, t: int, half_life: timedelta | None, without: Sequence[Case] = ()
) -> NDArray[np.float64]:
    """Recency-weighted popularity of each item as of the end of block t - 1 (0: D_1), the largest scaled to 1.

    float64 [items]. An interaction counts 2^(-age / half_life); without timestamps or half-life all count alike.
    without: cases whose answers are not counted, since something is going to be scored by them.
    """
    place_of = {user: place for place, user in enumerate(data.users)} if without else {}
    answers = np.array([place_of[case.user_id] * len(data.items) + case.target for case in without], dtype=np.int64)
    past = data.blocks[:t]
    weights = np.zeros(len(data.items))
    times = [block.timestamp for block in past if block.timestamp is not None]
    newest = max((float(own.max()) for own in times if len(own)), default=0.0)
    for block in past:
        counted = ~np.isin(block.user * len(data.items) + block.item, answers)
        if block.timestamp is None or half_life is None:
            counts = np.bincount(block.item[counted], minlength=len(weights))
        else:
            exponents = np.maximum((block.timestamp[counted] - newest) / half_life.total_seconds(), FAINTEST)
            counts = np.bincount(block.item[counted], 2.0**exponents, minlength=len(weights))
        weights += counts
    largest = weights.max(initial=0.0)
    return weights / largest if largest > 0 else weights


def check_scorable(data: BacktestData, min_events: int) -> None:
    """Raises DatasetError naming the first block in which no user has a test case (trainer.examples)."""
    for t in range(len(data.blocks)):
        if not any(build_examples([s], history_items=1, min_events=min_events).test for s in streams(data, t)):
            users = len(np.unique(data.blocks[t].user))
            raise DatasetError(
                f"block {t + 1} of {data.name} cannot be scored: none of its {users} users has {min_events} "
                f"interactions in it with an item that is new to them; give more data, or lower "
                "ADAPTIDE_MIN_EVENTS_PER_USER"
            )


def _by_user(blocks: tuple[Block, ...]) -> tuple[NDArray[np.int64], Rows]:
    """Users, rising, and their rows in time order."""
    empty = np.zeros(0, dtype=np.int64)
    users = np.concatenate([empty, *(block.user for block in blocks)])
    order = np.argsort(users, kind="stable")
    return users[order], np.concatenate([empty, *(block.item for block in blocks)])[order]
