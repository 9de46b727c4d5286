"""Who a method helps: how far each scored user drifted in a block, how much of their past is known, and what is new."""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.backtest.blocks import Blocks
from trainer.backtest.data import streams
from trainer.drift import jensen_shannon


def user_groups(blocks: Blocks, codes: NDArray[np.int16]) -> dict[str, Any]:
    """Per increment ("2" ..): users, drift, history and new_items, in order of its test cases.

    drift: Jensen-Shannon distance (base 2, 0 to 1) between the first-level codes of what a user took before the block
    and in it; None without a past. history: how many interactions a user had before the block. new_items: whether
    nobody had taken the test item before the block.
    """
    found = {}
    for t in range(1, len(blocks)):
        cases, popularity = blocks.test(t), blocks.popularity(t)
        new = [bool(popularity[case.target] == 0) for case in cases]
        found[str(t + 1)] = _traits(blocks, t, [case.user_id for case in cases], codes) | {"new_items": new}
    return found


def asked_groups(blocks: Blocks, codes: NDArray[np.int16]) -> dict[str, Any]:
    """Per increment ("2" ..): users, drift and history of those who are asked for next items, in order of their ids."""
    return {
        str(t + 1): _traits(blocks, t, sorted({case.user_id for case in blocks.prequential(t)}), codes)
        for t in range(1, len(blocks))
    }


def _traits(blocks: Blocks, t: int, users: list[str], codes: NDArray[np.int16]) -> dict[str, Any]:
    own = {stream.user_id: stream for stream in streams(blocks.data, t)}
    asked = [own[user] for user in users]
    return {
        "users": users,
        "drift": [
            jensen_shannon(*(Counter(codes[rows, 0].tolist()) for rows in (stream.earlier, stream.window)))
            for stream in asked
        ],
        "history": [len(stream.earlier) for stream in asked],
    }
