"""What theory says of the methods, seen through the harness on a stream whose drift is known."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from service.settings import Settings
from tests.trainer.backtest.drifting import drifting, moves
from trainer.backtest.bases import fit_base, open_base
from trainer.backtest.tasks import Sweep, Task
from trainer.backtest.work import Blocks, read_blocks, run_task
from trainer.evaluation import ndcg
from trainer.progress import silent
from trainer.recipe import BaseRecipe
from trainer.tiny import TinyConfig

torch.set_num_threads(1)  # models this small only wait for one another's threads

SETTINGS = Settings(
    history_items=10,
    learning_rate_base=1e-2,
    learning_rate_update=2e-2,
    update_epochs=4,
    update_min_steps=0,
    update_batch_size=32,
    embedding_dropout=0.0,
    residual_dropout=0.0,
)
RECIPE = BaseRecipe(tiny=TinyConfig(32, 1, 1), epochs=8, batch_size=8, evaluate_every=4, patience=3)
Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs one method over the drifting stream; the base is built once."""
    folder = tmp_path_factory.mktemp("backtest")
    data = drifting()
    fit_base(data, RECIPE, SETTINGS, folder / "base", silent)
    base, blocks = open_base(data, folder / "base", SETTINGS), Blocks(data, SETTINGS)

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

    for drifted in (True, False):
        for after in (2, 3):
            difference = score(held, after, after, drifted=drifted) - score(frozen, after, after, drifted=drifted)
            assert abs(difference) < 0.02


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


def test_a_killed_task_goes_on_to_the_same_result(run: Run, tmp_path: Path) -> None:
    """As after kill -9 between two blocks, and in the middle of writing the next one."""
    data = drifting()
    fit_base(data, RECIPE, SETTINGS, tmp_path / "base", silent)
    base, blocks = open_base(data, tmp_path / "base", SETTINGS), Blocks(data, SETTINGS)
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
