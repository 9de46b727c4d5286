"""A base that two processes train, its blocks spread over both, is the same kind of base, with the same weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from service.adapters.artifacts import ArtifactStore
from service.kit import migrate
from service.kit.db import Database
from service.settings import Settings
from tests import worlds
from tests.conftest import SetClock
from tests.language_models import saved
from trainer.base import build_base
from trainer.language_base import LanguageRecipe, TrainMode
from trainer.recipe import BaseRecipe
from trainer.tiny import TinyConfig
from trainer.tokenizer.fit import Quantiser, TokenizerConfig
from trainer.updater import Updater

torch.set_num_threads(1)  # models this small only wait for one another's threads
TOKENIZER = TokenizerConfig(quantiser=Quantiser.RQKMEANS)


def made(folder: Path, recipe: BaseRecipe, *, window: bool = False, **changes: object) -> tuple[Path, Path]:
    """Builds a base in a store of its own; the folders of the base and of the adapter that serves in the end.

    window: a window of events is learnt after it.
    """
    database, clock = Database(f"sqlite:///{folder / 'adaptide.db'}"), SetClock()
    migrate.upgrade(database)
    worlds.put(database, clock, worlds.items(range(20)))
    worlds.send(database, clock, [e for e in worlds.first_walks() if e["item_id"] < "i20"])
    given = {"embedding_dropout": 0.0, "residual_dropout": 0.0, "min_events_per_user": 3, "processes_timeout": 240}
    given |= {"lora_rank": 8, "lora_alpha": 16}
    settings = Settings(home=folder, **(given | changes))  # type: ignore[arg-type]
    artifacts = ArtifactStore(settings.artifacts_dir)
    built = build_base(database, artifacts, settings, clock, recipe, actor="tests")
    version = built.adapter_version
    if window:
        worlds.send(database, clock, [e for e in worlds.later_walks(length=8) if e["item_id"] < "i20"])
        quick = {"update_epochs": 1, "update_min_steps": 0, "gate_tolerance": 1.0, "learning_rate_update": 1e-2}
        [learnt] = Updater(database, settings.model_copy(update=quick), clock, artifacts).close_and_work(None)
        assert learnt.candidate_version is not None, learnt.reason
        version = learnt.candidate_version
    database.close()
    return settings.artifacts_dir / "bases" / built.base_id, settings.artifacts_dir / "adapters" / version


def assert_alike(one: Path, other: Path, tolerance: float) -> None:
    """Equal files; equal names, types and shapes of tensors; nearly all values close for their tensor's size."""
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(other)) for path in other.rglob("*") if path.is_file())
    for name in names:
        if name.endswith("config.json"):
            assert json.loads((one / name).read_text()) == json.loads((other / name).read_text())
        if name.endswith(".safetensors"):
            tensors, wanted = load_file(one / name), load_file(other / name)
            assert tensors.keys() == wanted.keys()
            for key, tensor in tensors.items():
                assert tensor.dtype == wanted[key].dtype
                scale = wanted[key].double().abs().max().clamp_min(1e-6)
                away = (tensor.double() - wanted[key].double()).abs() / scale
                # Where a gradient is next to nothing, rounding decides its sign; Adam takes a whole step either way:
                # 8 % of a tensor on a processor with AMX, where products are in bfloat16.
                assert (away > tolerance).double().mean().item() < 0.15, key


@pytest.mark.parametrize("mode", TrainMode)
def test_a_sharded_language_model_makes_the_same_base(tmp_path: Path, mode: TrainMode) -> None:
    """And, with LoRA, an update of it on the sharded frozen base makes the same adapter."""
    source = str(saved(tmp_path / "model"))
    recipe = BaseRecipe(tokenizer=TOKENIZER, language=LanguageRecipe(source, mode, epochs=1, batch_size=7))
    found, windowed = {}, mode is TrainMode.LORA
    for name, changes in (("one", {}), ("two", {"processes": 2, "shard": True})):
        (tmp_path / name).mkdir()
        found[name] = made(tmp_path / name, recipe, window=windowed, **changes)

    for one, two in zip(found["one"], found["two"], strict=True):
        assert_alike(two, one, tolerance=0.03)  # stored in bfloat16, and on some CPUs multiplied in it


def test_two_processes_make_the_same_tiny_base(tmp_path: Path) -> None:
    recipe = BaseRecipe(TinyConfig(hidden=32, layers=1, heads=1), TOKENIZER, epochs=2, batch_size=7)
    found = {}
    for name, processes in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        found[name], _ = made(tmp_path / name, recipe, processes=processes)
    assert_alike(found["two"], found["one"], tolerance=0.03)
