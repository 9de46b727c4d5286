"""The demo as a newcomer runs it, on a small generated data set, with its real sizes and real processes."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from service.errors import ConfigurationError
from trainer.demo import window_cuts
from trainer.demo_processes import own_folder
from trainer.demo_report import Row, mean, table_json

ITEMS = 40
METRICS = {"hit@5", "hit@10", "ndcg@5", "ndcg@10"}


def write_dataset(folder: Path, users: int, events: int) -> None:
    """Users walk through the catalogue one item after the other; they come one after the other, too."""
    random = np.random.default_rng(0)
    with (folder / "items.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["item_id", "title", "categories"])
        rows.writerows([f"i{i}", f"number {i} of shelf {i // 8}", f"shelf {i // 8}"] for i in range(ITEMS))
    with (folder / "interactions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["user_id", "item_id", "timestamp"])
        for user in range(users):
            first = int(random.integers(ITEMS))
            rows.writerows(
                [f"u{user}", f"i{(first + step) % ITEMS}", 1_000_000 + 60 * user + step] for step in range(events)
            )


@pytest.mark.e2e
def test_the_demo_serves_learns_and_reports_four_windows(tmp_path: Path) -> None:
    write_dataset(tmp_path, users=200, events=12)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ADAPTIDE_")}
    environment = kept | {"ADAPTIDE_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "trainer.cli", "demo", "--once", "--json", "--port", "0", "--dataset", str(tmp_path)]

    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=280)

    assert done.returncode == 0, done.stderr
    assert "curl" in done.stderr
    report = json.loads(done.stdout)
    assert [window["window"] for window in report["windows"]] == [1, 2, 3, 4]
    for window in report["windows"]:
        assert window["events"] == 240
        assert window["verdict"] in {"promoted", "refused", "no_change"}
        assert all(set(window[subject]) == METRICS for subject in ("popularity", "base", "adapter"))
    assert report["windows"][0]["base"] == report["windows"][0]["adapter"]  # nothing has been learnt from yet
    assert report["mean"]["base"]["ndcg@10"] > report["mean"]["popularity"]["ndcg@10"]  # the walk can be learnt
    assert report["requests_during_replay"]["failures"] == 0
    assert report["requests_during_replay"]["requests"] > 0


def test_a_data_set_is_cut_at_sixty_percent_and_into_four_equal_windows() -> None:
    assert window_cuts(100_000) == [60_000, 70_000, 80_000, 90_000, 100_000]
    assert window_cuts(7) == [4, 5, 6, 6, 7]


def test_a_second_demo_in_the_same_home_is_refused_and_told_what_to_do(tmp_path: Path) -> None:
    with own_folder(tmp_path) as state:
        (state / "kept").touch()
        with pytest.raises(ConfigurationError, match="ADAPTIDE_HOME"), own_folder(tmp_path):
            pass
        assert (state / "kept").exists()


def test_the_table_shows_what_served_before_and_after_each_window() -> None:
    def figures(value: float) -> dict[str, float]:
        return dict.fromkeys(METRICS, value)

    def evaluation(subject: str, value: float) -> dict[str, object]:
        return {"subject": subject, **{name.replace("@", "_"): value for name in METRICS}}

    window = {
        "events": 10,
        "verdict": "promoted",
        "statistics": {
            "prequential": {
                "popularity": figures(0.1),
                "base": {"users": 3} | figures(0.2),
                "incumbent": figures(0.3),
            },
            "gradient_ratio": [0.1, 0.3],
        },
        "evaluations": [evaluation("incumbent", 0.4), evaluation("candidate", 0.5)],
    }
    promoted = Row.of(1, window, 2.0)
    refused = Row.of(2, window | {"verdict": "refused"}, 2.0)

    assert promoted.users == 3
    assert promoted.live["adapter"]["hit@5"] == 0.3
    assert (promoted.held_out["adapter"]["hit@5"], refused.held_out["adapter"]["hit@5"]) == (0.5, 0.4)
    assert promoted.gradient_ratio == pytest.approx(0.2)
    assert mean([promoted, refused], "base")["ndcg@10"] == 0.2
    assert table_json([promoted])["windows"][0]["popularity"] == figures(0.1)
