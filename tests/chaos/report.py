"""`python -m tests.chaos.report FILE`: the figures of a run as a table for docs/results/reliability.md."""

import json
import sys
from pathlib import Path
from typing import Any

from tests.chaos.scenarios import SCENARIOS


def table(lines: list[dict[str, Any]]) -> str:
    """A row for each test, in the order of the scenarios; a scenario of which nothing ran says so."""
    rows = ["| # | scenario | passes when | test | outcome | seconds | seen |", "|---|---|---|---|---|---:|---|"]
    for number, (scenario, passes_when) in SCENARIOS.items():
        found = [line for line in lines if line["scenario"] == number] or [
            {"test": "-", "outcome": "not run", "seconds": 0, "figures": {}}
        ]
        for line in found:
            seen = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in line["figures"].items())
            cells = [number, scenario, passes_when, line["test"], line["outcome"], f"{line['seconds']:g}", seen]
            rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.stdout.write(table([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]) + "\n")
