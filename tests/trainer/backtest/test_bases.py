"""A backtest's bases: a training that was killed goes on where it was."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from structlog.testing import capture_logs

from service.settings import Settings
from tests.trainer import ranks
from tests.trainer.backtest.drifting import drifting
from trainer.backtest.bases import fit_base
from trainer.progress import Report, silent
from trainer.recipe import BaseRecipe
from trainer.tiny import TinyConfig
from trainer.tokenizer.fit import TokenizerConfig

torch.set_num_threads(1)  # models this small only wait for one another's threads

SETTINGS = Settings(history_items=10, checkpoint_interval=timedelta(microseconds=1))
RECIPE = BaseRecipe(tiny=TinyConfig(32, 1, 1), epochs=2, batch_size=8)


def stopping_at(step: int, told: list[str] | None = None) -> Report:
    def report(name: str, done: int, total: int) -> None:
        if told is not None:
            told.append(name)
        if name == "base" and done == step:
            raise ranks.Interrupted

    return report


def test_a_base_that_was_killed_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    data = drifting(people=40)
    whole, cut = tmp_path / "whole" / "seed-0", tmp_path / "cut" / "seed-0"
    fit_base(data, RECIPE, SETTINGS, whole, silent)
    with pytest.raises(ranks.Interrupted):
        fit_base(data, RECIPE, SETTINGS, cut, stopping_at(8))
    assert not cut.exists()

    with capture_logs() as logs:
        fit_base(data, RECIPE, SETTINGS, cut, silent)

    assert [(row["event"], row["step"]) for row in logs if row["event"] == "training_resumed"] == [
        ("training_resumed", 7)
    ]
    weights, wanted = (load_file(next(folder.glob("model/*.safetensors"))) for folder in (cut, whole))
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in weights.items())
    assert [path.name for path in cut.parent.iterdir()] == ["seed-0"]


def test_a_base_that_was_killed_does_not_fit_its_semantic_ids_again(tmp_path: Path) -> None:
    data = replace(drifting(people=40), codes=None)
    recipe = replace(RECIPE, tokenizer=TokenizerConfig(dimensions=16, hidden=(16,), latent=8, steps=20))
    whole, cut = tmp_path / "whole" / "seed-0", tmp_path / "cut" / "seed-0"
    fit_base(data, recipe, SETTINGS, whole, silent)
    first: list[str] = []
    with pytest.raises(ranks.Interrupted):
        fit_base(data, recipe, SETTINGS, cut, stopping_at(1, first))

    again: list[str] = []
    with pytest.raises(ranks.Interrupted):
        fit_base(data, recipe, SETTINGS, cut, stopping_at(8, again))
    other_seed: list[str] = []
    with pytest.raises(ranks.Interrupted):
        fit_base(data, recipe, SETTINGS.model_copy(update={"seed": 1}), cut, stopping_at(8, other_seed))

    assert ["semantic IDs" in told for told in (first, again, other_seed)] == [True, False, True]
    fit_base(data, recipe, SETTINGS, cut, silent)
    codes, wanted = (load_file(folder / "codes.safetensors")["codes"] for folder in (cut, whole))
    assert torch.equal(codes, wanted)
    assert [path.name for path in cut.parent.iterdir()] == ["seed-0"]
