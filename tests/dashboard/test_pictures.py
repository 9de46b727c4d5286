"""The geometry of drawings."""

import numpy as np

from service.adapters.movement import Against, Movement
from service.catalog.usage import LevelUsage
from service.dashboard.pictures import STRIP_HEIGHT, heat_map, strip


def test_heat_goes_by_the_share_of_the_largest_value_and_gaps_stay_gaps() -> None:
    values = {(0, "q"): 0.4, (0, "k"): 0.1, (1, "q"): None}
    drawn = heat_map(Movement(Against.PARENT, (0, 1), ("q", "k"), values))
    cells = [[cell and (cell.heat, cell.text) for cell in row] for row in drawn.rows]
    assert cells == [[(8, "40 %"), (2, "10 %")], [(-1, "new"), None]]
    assert drawn.summary == "Most: q of layer 0 (40 %); least: k of layer 0 (10 %); on average 25 %."


def test_what_did_not_move_is_cold() -> None:
    drawn = heat_map(Movement(Against.PARENT, (0,), ("q",), {(0, "q"): 0.0}))
    assert drawn.rows[0][0] is not None
    assert (drawn.rows[0][0].heat, drawn.rows[0][0].text) == (0, "0 %")
    assert heat_map(Movement(Against.PARENT, (), (), {})).summary == "Nothing can be compared."


def test_the_most_used_code_is_as_high_as_the_strip() -> None:
    counts = np.zeros(256, dtype=np.int64)
    counts[0], counts[255] = 4, 2
    assert strip(LevelUsage(counts)) == f"M1.5 44v-{STRIP_HEIGHT:.1f}M766.5 44v-22.0"
    assert strip(LevelUsage(counts * 0)) == ""
