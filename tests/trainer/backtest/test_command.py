"""`adaptide backtest` as a user runs it: real files, real processes, results that can be taken up again."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from service.errors import AdaptideError, Conflict, DatasetError, InvalidRequest
from tests.trainer.backtest.drifting import drifting
from trainer.backtest.command import _check_beside
from trainer.backtest.runner import _alone
from trainer.backtest.tasks import METHODS
from trainer.cli import app

ROOT = Path(__file__).parents[3]
QUICK = ["--hidden", "32", "--layers", "1", "--base-epochs", "2", "--workers", "1"]


def timeless(value: Any) -> Any:
    """Without what differs between two runs of the same backtest."""
    if isinstance(value, dict):
        return {k: timeless(own) for k, own in value.items() if k not in ("seconds", "command", "machine")}
    return [timeless(own) for own in value] if isinstance(value, list) else value


def results_of(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


def adaptide(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "trainer.cli", *arguments],
        cwd=ROOT,
        env=_environment(environment),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def refused(*arguments: str, **environment: str) -> AdaptideError:
    """What the command raises, in this process: one of its own takes seconds to start, and nothing is computed."""
    found = within(*arguments, **environment)
    assert isinstance(found.exception, AdaptideError), found.exception
    return found.exception


def within(*arguments: str, **environment: str) -> Result:
    outside: dict[str, str | None] = {name: None for name in os.environ if name.startswith("ADAPTIDE_")}
    return CliRunner().invoke(app, ["backtest", *arguments], env=outside | _settings(environment))


def _environment(more: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ADAPTIDE_")} | _settings(more)


def _settings(more: dict[str, str]) -> dict[str, str]:
    quick = {
        "ADAPTIDE_UPDATE_EPOCHS": "1",
        "ADAPTIDE_UPDATE_MIN_STEPS": "0",
        "ADAPTIDE_LEARNING_RATE_BASE": "0.01",
        "COLUMNS": "200",
    }
    return quick | more


@pytest.fixture
def one_core() -> Iterator[None]:
    """So that a worker has one thread, however many workers there are: threads decide how sums are rounded."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


@pytest.fixture
def raw_files(tmp_path: Path) -> list[str]:
    """The drifting stream as items and events."""
    return written_raw(tmp_path, people=80)


def written_raw(tmp_path: Path, people: int) -> list[str]:
    data = drifting(
        increments=4, first=42, items=150, people=people
    )  # D_1 is 60 % of all, and nobody comes round to a known item
    events, items = tmp_path / "events.csv", tmp_path / "items.csv"
    with items.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "title"])
        writer.writerows([item.item_id, f"{item.title} of tenth {row // 6}"] for row, item in enumerate(data.items))
    with events.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "timestamp"])
        second = 1_600_000_000
        for block in data.blocks:
            for user, item in zip(block.user.tolist(), block.item.tolist(), strict=True):
                second += 1
                writer.writerow([data.users[user], data.items[item].item_id, second])
    return ["--items", str(items), "--events", str(events)]


@pytest.fixture
def ready_files(tmp_path: Path) -> list[str]:
    """The drifting stream as ready blocks with semantic IDs."""
    data = drifting(people=40)
    assert data.codes is not None
    blocks, codes = tmp_path / "blocks.csv", tmp_path / "semantic_ids.csv"
    with codes.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "sid_a", "sid_b", "sid_c", "sid_d"])
        for item, own in zip(data.items, data.codes.tolist(), strict=True):
            writer.writerow([item.item_id, *(f"<{level}_{code}>" for level, code in zip("abcd", own, strict=True))])
    with blocks.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["block", "user_id", "position", "item_id"])
        for number, block in enumerate(data.blocks):
            for place, (user, item) in enumerate(zip(block.user.tolist(), block.item.tolist(), strict=True)):
                writer.writerow([number, data.users[user], place, data.items[item].item_id])
    return ["--blocks", str(blocks), "--semantic-ids", str(codes)]


def test_the_methods_are_listed() -> None:
    found = adaptide("backtest", "--list-methods", "--json")

    assert found.returncode == 0
    assert {"popularity", "sasrec", "peso", "inf-lora-latest-inherit", "lightgcn-pisa"} <= set(
        json.loads(found.stdout)["methods"]
    )


def test_raw_events_become_results_and_a_report(raw_files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    methods = "popularity,pretrain,single-evolving,peso,sum-lora-latest-inherit"
    asked = [*raw_files, "--methods", methods, "--seeds", "1", "--out", str(out), *QUICK]

    found = adaptide("backtest", *asked, "--json")

    assert found.returncode == 0, found.stderr
    results = json.loads(found.stdout)
    assert results == json.loads((out / "results.json").read_text())
    assert set(results["methods"]) == set(methods.split(","))
    for summary in results["methods"].values():
        for metric in ("hit@5", "hit@10", "ndcg@5", "ndcg@10"):
            assert len(summary[metric]["per_block"]) == 4
            assert 0 <= summary[metric]["mean"] <= 1
    peso = results["methods"]["peso"]
    low, high = peso["ndcg@10"]["vs_single_evolving"]["ci95"]
    assert low <= peso["ndcg@10"]["vs_single_evolving"]["difference"] <= high
    assert peso["gradient_ratio"] > 0
    assert peso["trainable_parameters"] > 0
    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert "<script src" not in page


@pytest.mark.usefixtures("one_core")
def test_ready_blocks_can_be_taken_up_after_a_kill(ready_files: list[str], tmp_path: Path) -> None:
    asked = [*ready_files, "--methods", "sasrec,single-evolving,peso", "--seeds", "1", *QUICK]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert adaptide("backtest", *asked, "--out", str(whole)).returncode == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer.cli", "backtest", *asked, "--out", str(cut)],
        cwd=ROOT,
        env=_environment({}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (cut / "tasks/sasrec.seed-0/block-2.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    so_far = adaptide("backtest", *asked, "--out", str(cut), "--so-far", "--json")
    assert so_far.returncode == 0, so_far.stderr
    assert not json.loads(so_far.stdout)["complete"]
    assert "peso" not in json.loads(so_far.stdout)["methods"]
    assert (cut / "report.html").exists()

    assert adaptide("backtest", *asked, "--out", str(cut)).returncode == 0

    assert timeless(results_of(cut)) == timeless(results_of(whole))
    assert results_of(cut)["methods"]["sasrec"]["stored_bytes"] > 0


def test_what_fails_does_not_end_the_rest(ready_files: list[str], tmp_path: Path) -> None:
    asked = [*ready_files, "--seeds", "1", "--out", str(tmp_path / "out"), *QUICK]
    assert "holds no base of these seeds yet" in refused(*asked, "--methods", "peso", "--so-far").detail
    assert not (tmp_path / "out").exists()
    assert adaptide("backtest", *asked, "--methods", "peso").returncode == 0
    kept = tmp_path / "out/tasks/peso.seed-0"
    (kept / "block-2.safetensors").write_bytes(b"damaged")
    for block in (3, 4, 5):
        (kept / f"block-{block}.json").unlink(missing_ok=True)

    (tmp_path / "out/bases/seed-1").mkdir()
    (tmp_path / "out/bases/seed-1/base.json").write_text('{"made_from": "something else"}')

    found = adaptide("backtest", *asked, "--seeds", "2", "--methods", "peso,popularity")

    assert found.returncode == 1
    said = " ".join(found.stderr.split())
    assert "seed-1 was made from other data or with other settings" in said
    assert "the rest is done and kept: --so-far shows it" in said
    assert "peso.seed-0" in said
    assert "block-2" in said
    results = json.loads(adaptide("backtest", *asked, "--methods", "peso,popularity", "--so-far", "--json").stdout)
    assert results["methods"]["popularity"]["complete"]
    assert not results["methods"]["peso"]["complete"]


@pytest.mark.usefixtures("one_core")
def test_two_workers_give_the_figures_of_one(ready_files: list[str], tmp_path: Path) -> None:
    asked = [*ready_files, "--methods", "popularity,peso", "--seeds", "2", *QUICK[:-2]]
    for workers in ("1", "2"):
        found = adaptide("backtest", *asked, "--workers", workers, "--out", str(tmp_path / workers))
        assert found.returncode == 0, found.stderr

    alone, together = (results_of(tmp_path / workers) for workers in ("1", "2"))
    assert (alone["machine"]["workers"], together["machine"]["workers"]) == (1, 2)
    assert alone["seeds"] == [0, 1]
    losses = [base["losses"] for base in alone["bases"]]
    assert losses[0] != losses[1]
    assert timeless(together) == timeless(alone)


@pytest.mark.usefixtures("one_core")
def test_the_user_disjoint_control_stands_beside_the_chronological_run(tmp_path: Path) -> None:
    files = written_raw(tmp_path, people=40)
    asked = [*files, "--methods", "single-evolving,sum-lora-latest", "--seeds", "1", *QUICK, "--quantiser", "rqkmeans"]
    by_time, by_user = tmp_path / "by-time", tmp_path / "by-user"
    assert adaptide("backtest", *asked, "--out", str(by_time)).returncode == 0

    control = ["--split", "user-disjoint", "--beside", str(by_time), "--out", str(by_user)]
    found = adaptide("backtest", *asked, *control)

    assert found.returncode == 0, found.stderr
    assert "NDCG@5 vs single, chronological" in found.stdout
    results = results_of(by_user)
    assert results["data"]["split"] == "user-disjoint"
    assert results["beside"] == {"split": "chronological", "methods": results_of(by_time)["methods"]}
    rows = [json.loads((by_user / f"tasks/sum-lora-latest.seed-0/block-{t}.json").read_text()) for t in (2, 3, 4, 5)]
    scored = [user for row in rows for user in row["users"]]
    assert len(set(scored)) == len(scored) > 0


@pytest.mark.parametrize("held", [None, "{}", '{"data": '])
def test_a_folder_without_a_finished_backtest_cannot_stand_beside(held: str | None, tmp_path: Path) -> None:
    if held is not None:
        (tmp_path / "results.json").write_text(held)
    files = ["--items", "items.csv", "--events", "events.csv", "--out", "o"]

    error = refused(*files, "--beside", str(tmp_path))

    assert isinstance(error, InvalidRequest)
    assert "there is no results.json of a finished backtest in it" in error.detail


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "o"], "give --dataset, or --items and --events, or --blocks and --semantic-ids"),
        (["--dataset", "d", "--items", "i", "--out", "o"], "give --dataset, or --items and --events, or --blocks"),
        (["--methods", "peso"], "--out is missing"),
        (["--methods", "pseo", "--out", "o"], "method 'pseo' is not known; methods: popularity"),
        (["--lambdas", "much", "--out", "o"], "--lambdas takes numbers"),
        (["--group-by", "head", "--out", "o"], "--group-by 'head' is not known"),
        (["--ranks", "7.5", "--out", "o"], "--ranks takes whole numbers up to 1024, not 7.5"),
        (["--items", "i", "--events", "e", "--out", "o", "--bases", "no"], "--bases no: there are no bases in it"),
        (
            ["--items", "i", "--events", "e", "--out", "o", "--backbone", "smollm2", "--ranks", "32"],
            "--ranks changes nothing here: the adapter that D_1 gives a language model has its rank",
        ),
    ],
)
def test_wrong_use_says_what_to_do(arguments: list[str], says: str) -> None:
    error = refused(*arguments)

    assert isinstance(error, InvalidRequest)
    assert says in error.detail


def test_a_folder_of_another_backtest_is_kept_and_an_empty_one_taken_over(
    ready_files: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = [*ready_files, "--methods", "popularity", "--seeds", "1", "--out", str(out), *QUICK]
    out.mkdir()
    another = '{"format": 1, "data": "another"}'  # of which nothing came about
    (out / "backtest.json").write_text(another)
    with _alone(out):  # by one that is about to begin
        assert "another backtest is at work" in refused(*asked).detail
        assert (out / "backtest.json").read_text() == another
    assert adaptide("backtest", *asked).returncode == 0

    changed = refused(*asked, ADAPTIDE_UPDATE_EPOCHS="2")
    assert isinstance(changed, Conflict)
    assert "another --out" in changed.detail
    assert "ADAPTIDE_UPDATE_EPOCHS" in changed.detail
    assert "other base (layers)" in refused(*asked, "--layers", "2").detail

    claimed = (out / "backtest.json").read_text()
    (out / "backtest.json").write_text(claimed.replace('"device": "cpu"', '"device": "cuda"'))
    assert "with other device" in refused(*asked).detail
    assert within(*asked, "--so-far").exit_code == 0  # to read it is no matter of devices
    (out / "backtest.json").write_text(claimed)

    more = [*asked[:4], "--methods", "popularity,pretrain", *asked[6:]]
    found = adaptide("backtest", *more, ADAPTIDE_RATE_LIMIT="50")  # which plays no part
    assert found.returncode == 0, found.stderr


def test_a_folder_that_cannot_be_written_to_is_named(ready_files: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = refused(*ready_files, "--methods", "popularity", "--out", str(tmp_path / "file/out"), *QUICK)
    assert isinstance(error, InvalidRequest)
    assert "cannot be written to" in error.detail


def test_two_backtests_do_not_work_in_one_folder(tmp_path: Path) -> None:
    with _alone(tmp_path), pytest.raises(Conflict, match="another backtest is at work"), _alone(tmp_path):
        pass
    with _alone(tmp_path):  # the first is over
        pass


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"split": "chronological", "name": "a", "users": 4, "items": 9}, "wants the other split"),
        ({"split": "user-disjoint", "name": "b", "users": 4, "items": 9}, "wants the same data under the other split"),
    ],
)
def test_only_the_other_split_of_the_same_data_stands_beside(other: dict[str, Any], says: str) -> None:
    own = {"data": {"split": "chronological", "name": "a", "users": 4, "items": 9}}
    with pytest.raises(InvalidRequest, match=says):
        _check_beside({"data": other}, own)


def test_one_user_with_a_block_that_teaches_nothing_is_a_table_for_every_method(tmp_path: Path) -> None:
    """Block 2 has a test and a validation item and no target before them."""
    taken = [range(8), [8, 9, 8, 8, 9]]
    rows = [f"{t},u,{place},i{item}" for t, own in enumerate(taken) for place, item in enumerate(own)]
    codes = [f"i{item},{item // 4},{item % 4},{item % 5},{item % 7}" for item in range(10)]
    (tmp_path / "blocks.csv").write_text("block,user_id,position,item_id\n" + "\n".join(rows) + "\n")
    (tmp_path / "codes.csv").write_text("item_id,sid_a,sid_b,sid_c,sid_d\n" + "\n".join(codes) + "\n")
    files = ["--blocks", str(tmp_path / "blocks.csv"), "--semantic-ids", str(tmp_path / "codes.csv")]
    out = tmp_path / "out"

    found = adaptide("backtest", *files, "--methods", "all", "--seeds", "1", "--out", str(out), *QUICK)

    assert found.returncode == 0, found.stderr
    assert "Of block 2 there is nothing to train on" in found.stdout
    results = json.loads((out / "results.json").read_text())
    assert set(results["methods"]) == set(METHODS)
    assert results["complete"]


def test_a_block_that_nobody_can_be_scored_in_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "codes.csv").write_text("item_id,sid_a,sid_b,sid_c,sid_d\nx,1,2,3,4\ny,1,2,3,5\n")
    rows = [f"0,u,{place},{'xy'[place % 2]}" for place in range(6)] + ["1,u,0,x"]
    (tmp_path / "blocks.csv").write_text("block,user_id,position,item_id\n" + "\n".join(rows) + "\n")
    files = ["--blocks", str(tmp_path / "blocks.csv"), "--semantic-ids", str(tmp_path / "codes.csv")]

    error = refused(*files, "--methods", "popularity", "--out", str(tmp_path / "out"))

    assert isinstance(error, DatasetError)
    assert "cannot be scored" in error.detail
    assert not (tmp_path / "out" / "bases").exists()
