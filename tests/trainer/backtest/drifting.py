"""A hand-made stream: everyone walks a circle of items one step at a time; later half of the users take three."""

import numpy as np

from trainer.backtest.data import BacktestData, Block
from trainer.datasets import DatasetItem

ITEMS, USERS = 60, 240
FIRST, LATER = 10, 7  # items of a user in D_1 and in each increment


def moves(user: int) -> bool:
    """Whether the user's preference moves after D_1; it stays for the rest."""
    return user % 2 == 1


def user_id(user: int) -> str:
    return f"u{user:03d}"


def drifting(
    increments: int = 2, seed: int = 0, first: int = FIRST, items: int = ITEMS, people: int = USERS
) -> BacktestData:
    """D_1 and `increments` blocks, codes ready: level 1 is the tenth of the circle, the others tell items apart."""
    random = np.random.default_rng(seed)
    place = random.integers(0, items, people)
    blocks = []
    for number in range(1 + increments):
        users, taken = [], []
        for _ in range(LATER if number else first):
            for user in range(people):
                stride = 3 if number and moves(user) else 1
                users.append(user)
                taken.append(place[user])
                place[user] = (place[user] + stride) % items
        blocks.append(Block(np.array(users), np.array(taken), None))
    numbers = np.arange(items)
    codes = np.stack([numbers // 6, numbers % 6, numbers % 5, numbers % 7], axis=1).astype(np.int16)
    return BacktestData(
        "drifting",
        f"drifting-{increments}-{seed}",
        tuple(user_id(user) for user in range(people)),
        tuple(DatasetItem(f"i{number:03d}", f"item {number}") for number in range(items)),
        tuple(blocks),
        codes,
        (),
    )
