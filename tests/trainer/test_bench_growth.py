"""The benchmarks of reading and learning run the service's own code over worlds of the size that they name."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trainer.bench_capacity import bench_capacity
from trainer.bench_history import bench_history
from trainer.bench_update import GROWS, World, bench_update, grown
from trainer.cli import app

SMALL = World(window_events=300, users=40, life=5, items=200)


def test_a_history_is_read_from_the_index_and_the_row_says_so() -> None:
    past, page = bench_history(None, 3_000, reads=20, seed=0)

    assert (past.read, page.read, past.stored) == ("past", "page", 3_000)
    assert 0 < past.warm_median_ms <= past.warm_p99_ms
    assert all("SEARCH events USING" in plan for plan in past.plan + page.plan)


@pytest.mark.parametrize("grows", GROWS)
def test_one_size_grows_at_a_time(grows: str) -> None:
    changed = grown(SMALL, grows, 3)
    assert getattr(changed, GROWS[grows]) == 3 * getattr(SMALL, GROWS[grows])
    same = set(GROWS.values()) - {GROWS[grows]}
    assert all(getattr(changed, size) == getattr(SMALL, size) for size in same)


def test_three_windows_are_learnt_and_each_step_is_timed() -> None:
    rows = list(bench_update(None, "lives", 2, world=SMALL))

    assert [row.run for row in rows] == ["first", "running", "restarted"]
    assert {(row.window, row.history, row.life, row.items) for row in rows} == {(300, 400, 10, 200)}
    for row in rows:
        assert {"seal", "catalogue", "examples", "popularity", "evaluate_before", "fit", "publish"} < set(row.seconds)
        assert row.seconds["all"] == pytest.approx(sum(row.seconds.values()) - row.seconds["all"], abs=0.01)


def test_bytes_and_time_of_each_thing_that_grows() -> None:
    rows = {row.what: row for row in bench_capacity(None, events=2_000, recommendations=300, items=2_000)}

    assert set(rows) == {
        "item, stored",
        "item, codes alone",
        "event",
        "recommendation",
        "item, in a replica",
        "event, counted by a replica",
    }
    assert 100 < rows["event"].bytes_each < 10_000
    assert 500 < rows["recommendation"].bytes_each < 10_000
    assert all(row.seconds_each > 0 for row in rows.values())


def test_the_commands_print_one_document(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ADAPTIDE_TEST_POSTGRES_URL", raising=False)
    runner = CliRunner()
    done = runner.invoke(app, ["bench", "history", "--stored", "2000", "--reads", "5", "--json"])
    assert done.exit_code == 0, done.output
    assert [row["read"] for row in json.loads(done.stdout)["rows"]] == ["past", "page"]
    assert runner.invoke(app, ["bench", "update", "--grows", "taxes"]).exit_code == 1
