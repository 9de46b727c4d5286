"""Who is in which group, of a few hand-written blocks."""

import numpy as np
import pytest

from service.settings import Settings
from tests.trainer.backtest.test_data import block, data
from trainer.backtest.blocks import Blocks
from trainer.backtest.groups import asked_groups, user_groups

# Ann stays with the first code of what she took before, Bob goes to another one; only Ann has enough to be scored.
ANN, BOB = 0, 1
CODES = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 0, 3], [7, 0, 0, 0], [7, 0, 0, 1]], dtype=np.int16)
BLOCKS = Blocks(
    data(block((ANN, 0), (BOB, 0)), block((ANN, 1), (BOB, 4), (ANN, 2), (ANN, 3))), Settings(min_events_per_user=3)
)


def test_scored_users_have_their_drift_their_past_and_whether_their_item_is_new() -> None:
    assert user_groups(BLOCKS, CODES) == {"2": {"users": ["ann"], "drift": [0.0], "history": [1], "new_items": [True]}}


def test_whoever_is_asked_for_next_items_is_in_a_group_the_others_too() -> None:
    found = asked_groups(BLOCKS, CODES)["2"]
    assert (found["users"], found["history"]) == (["ann", "bob"], [1, 1])
    assert found["drift"] == pytest.approx([0.0, 1.0])
