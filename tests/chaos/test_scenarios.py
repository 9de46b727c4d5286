"""The list itself: no scenario is without a test."""

import re
from pathlib import Path

from tests.chaos.scenarios import SCENARIOS


def test_every_scenario_has_a_test() -> None:
    marks = re.compile(r"pytest\.mark\.scenario\((\d+)\)")
    held = {
        int(number) for path in Path(__file__).parent.glob("test_*.py") for number in marks.findall(path.read_text())
    }

    assert held == set(SCENARIOS)
