"""What theory says of the methods, seen through the harness on a stream whose drift is known."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from service.errors import ArtifactError
from service.settings import Settings
from tests.trainer.backtest.drifting import drifting, moves
from trainer.backtest.bases import BacktestBase, fit_base, open_base
from trainer.backtest.blocks import Blocks
from trainer.backtest.data import Block
from trainer.backtest.tasks import Sweep, Task
from trainer.backtest.work import read_blocks, run_task
from trainer.evaluation import ndcg
from trainer.progress import silent
from trainer.recipe import BaseRecipe
from trainer.tiny import TinyConfig

torch.set_num_threads(1)  # models this small only wait for one another's threads

SETTINGS = Settings(
    history_items=10,
    learning_rate_base=1e-2,
    learning_rate_update=2e-2,
    lora_rank=8,
    lora_alpha=16,
    update_epochs=4,
    update_min_steps=0,
    update_batch_size=32,
    embedding_dropout=0.0,
    residual_dropout=0.0,
)
RECIPE = BaseRecipe(tiny=TinyConfig(32, 1, 1), epochs=8, batch_size=8, evaluate_every=4, patience=3)
Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BacktestBase:
    """Of the drifting stream, built once."""
    folder = tmp_path_factory.mktemp("base") / "base"
    fit_base(drifting(), RECIPE, SETTINGS, folder, silent)
    return open_base(drifting(), folder, SETTINGS)


@pytest.fixture(scope="module")
def run(base: BacktestBase, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs one method over the drifting stream."""
    folder, blocks = tmp_path_factory.mktemp("backtest"), Blocks(drifting(), SETTINGS)

    def run_method(method: str, sweep: Sweep | None = None, value: float = 0.0) -> list[dict[str, Any]]:
        task = Task(method, 0, (sweep, value) if sweep else None)
        run_task(task, blocks, base, folder / task.name, silent)
        return read_blocks(folder / task.name)

    return run_method


def score(rows: list[dict[str, Any]], after: int, on: int, *, drifted: bool) -> float:
    """NDCG@10 of the adapter after a block on another (or the same) block's users of one kind."""
    blocks = Blocks(drifting(), SETTINGS)
    row = next(row for row in rows if row["block"] == after)
    gains = ndcg(np.array(row["across"][str(on)]), 10)
    kind = np.array([moves(int(case.user_id[1:])) == drifted for case in blocks.across(on - 1)])
    return float(gains[kind].mean())


def test_lambda_0_is_single_evolving_bit_for_bit(run: Run, tmp_path: Path) -> None:
    free, peso = run("single-evolving"), run("peso", Sweep.LAMBDA, 0.0)

    for one, other in zip(free, peso, strict=True):
        assert one["ranks"] == other["ranks"]
        assert one["losses"] == other["losses"]
        assert one["validation"] == other["validation"]


def test_lambda_without_bounds_is_pretrain(run: Run) -> None:
    frozen, held = run("pretrain"), run("peso", Sweep.LAMBDA, 1e8)

    for rows in zip(frozen, held, run("single-evolving"), strict=True):
        wanted, ranks, free = (np.concatenate([row["across"][str(block)] for block in (1, 2, 3)]) for row in rows)
        assert np.mean(ranks == wanted) >= 0.99
        assert np.mean(free == wanted) < 0.9


def test_single_evolving_beats_pretrain_on_the_users_who_drifted(run: Run) -> None:
    frozen, free = run("pretrain"), run("single-evolving")

    assert score(frozen, 3, 3, drifted=True) < 0.1
    assert score(free, 3, 3, drifted=True) > 0.5


def test_pretrain_keeps_what_it_knew_and_single_evolving_forgets_some(run: Run) -> None:
    frozen, free = run("pretrain"), run("single-evolving")

    assert score(frozen, 3, 1, drifted=False) > 0.95
    assert score(free, 3, 1, drifted=False) < score(frozen, 3, 1, drifted=False) - 0.05


def test_the_proximal_lowers_forgetting_on_the_users_who_stayed(run: Run) -> None:
    free, held = run("single-evolving"), run("peso", Sweep.LAMBDA, 2_000.0)

    for on in (1, 2, 3):
        assert score(held, 3, on, drifted=False) > score(free, 3, on, drifted=False) + 0.05


def test_what_the_proximal_keeps_it_takes_from_adaptation(run: Run) -> None:
    free, held = run("single-evolving"), run("peso", Sweep.LAMBDA, 2_000.0)

    assert score(held, 3, 3, drifted=True) < score(free, 3, 3, drifted=True)


def test_next_items_are_asked_for_before_their_block_is_learnt(run: Run) -> None:
    frozen, free = run("pretrain"), run("single-evolving")

    def asked(row: dict[str, Any]) -> float:
        """NDCG@10 of the next items of those who drifted."""
        users, gains = row["prequential"]["users"], ndcg(np.array(row["prequential"]["ranks"]), 10)
        return float(np.mean([gain for user, gain in zip(users, gains, strict=True) if moves(int(user[1:]))]))

    assert free[0]["prequential"] == frozen[0]["prequential"]  # nothing but D_1 is known yet
    assert free[0]["ranks"] != frozen[0]["ranks"]
    assert asked(free[1]) > asked(frozen[1]) + 0.1  # what was learnt of the block before


@pytest.mark.parametrize("window", [(1, 2, 1, 1, 2), (5, 6, 5, 6, 1)], ids=["no training", "no validation"])
@pytest.mark.parametrize("method", ["single-evolving", "peso", "sum-lora-latest", "inf-lora-all"])
def test_a_block_that_an_updater_would_skip_changes_nothing(
    method: str, window: tuple[int, ...], base: BacktestBase, tmp_path: Path
) -> None:
    whole = drifting()
    user = np.zeros(5, dtype=np.int64)
    blocks = (Block(user[:3], np.array([5, 6, 7]), None), Block(user, np.array(window), None), whole.blocks[2])
    data = replace(whole, blocks=blocks)

    run_task(Task(method, 0), Blocks(data, SETTINGS), base, tmp_path, silent)

    skipped, learnt = read_blocks(tmp_path)
    assert (skipped["changed"], skipped["losses"], skipped["stored_bytes"]) == (False, [], 0)
    assert len(skipped["ranks"]) == 1
    assert learnt["changed"]


def test_progress_moves_within_a_block(base: BacktestBase, tmp_path: Path) -> None:
    seen: list[float] = []
    run_task(
        Task("peso", 0),
        Blocks(drifting(), SETTINGS),
        base,
        tmp_path,
        lambda step, done, total: seen.append(done / total),
    )

    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert sum(share < 0.5 for share in seen) > 3
    assert sum(0.5 < share < 1 for share in seen) > 3


def test_a_killed_task_goes_on_to_the_same_result(base: BacktestBase, tmp_path: Path) -> None:
    """As after kill -9 between two blocks, and in the middle of writing the next one."""
    blocks = Blocks(drifting(), SETTINGS)
    task = Task("sum-lora-all-inherit", 0)
    run_task(task, blocks, base, tmp_path / "whole", silent)
    run_task(task, blocks, base, tmp_path / "cut", silent)
    (tmp_path / "cut" / "block-3.json").unlink()
    (tmp_path / "cut" / "block-3.safetensors").write_bytes(b"half a fi")
    (tmp_path / "cut" / "block-3.json.partial").write_bytes(b"{")

    run_task(task, blocks, base, tmp_path / "cut", silent)

    for whole, cut in zip(read_blocks(tmp_path / "whole"), read_blocks(tmp_path / "cut"), strict=True):
        assert (cut["ranks"], cut["losses"], cut["across"]) == (whole["ranks"], whole["losses"], whole["across"])
    whole_end, cut_end = (load_file(tmp_path / name / "block-3.safetensors") for name in ("whole", "cut"))
    assert whole_end.keys() == cut_end.keys()
    assert all(torch.equal(tensor, cut_end[name]) for name, tensor in whole_end.items())


def test_a_block_that_is_gone_is_learnt_again_with_all_after_it(base: BacktestBase, tmp_path: Path) -> None:
    """Not from the adapter of a later block."""
    blocks, task = Blocks(drifting(), SETTINGS), Task("single-evolving", 0)
    run_task(task, blocks, base, tmp_path, silent)
    expected = read_blocks(tmp_path)
    (tmp_path / "block-2.json").unlink()

    run_task(task, blocks, base, tmp_path, silent)

    for before, after in zip(expected, read_blocks(tmp_path), strict=True):
        assert (after["ranks"], after["losses"]) == (before["ranks"], before["losses"])


def test_damaged_results_are_named_with_what_to_do(base: BacktestBase, tmp_path: Path) -> None:
    blocks, task = Blocks(drifting(), SETTINGS), Task("popularity", 0)
    run_task(task, blocks, base, tmp_path, silent)
    assert [row["block"] for row in read_blocks(tmp_path)] == [2, 3]
    (tmp_path / "block-2.json").write_bytes(b'{"block": 2, "us')

    with pytest.raises(ArtifactError, match=r"block-2\.json cannot be read .* delete .* run again"):
        read_blocks(tmp_path)


def test_a_damaged_file_of_an_earlier_run_is_named_with_what_to_do(base: BacktestBase, tmp_path: Path) -> None:
    blocks, task = Blocks(drifting(), SETTINGS), Task("pretrain", 0)
    run_task(task, blocks, base, tmp_path, silent)
    last = len(blocks)
    (tmp_path / f"block-{last}.json").unlink()
    (tmp_path / f"block-{last - 1}.safetensors").write_bytes(b"cut short")

    with pytest.raises(ArtifactError, match=f"block-{last - 1}.safetensors cannot be read .* delete .* run again"):
        run_task(task, blocks, base, tmp_path, silent)
