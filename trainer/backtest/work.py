"""One task of a backtest, block by block, each block kept as it is done: a killed run goes on after the last one."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from service.errors import ArtifactError
from service.generation.backbone import Backbone
from service.settings import Settings
from trainer.backtest.bases import BacktestBase
from trainer.backtest.blocks import Blocks
from trainer.backtest.data import streams
from trainer.backtest.tasks import Task
from trainer.evaluation import model_ranks, popularity_ranks
from trainer.examples import Case
from trainer.fit import FitReport
from trainer.learn import adapt, served
from trainer.methods import make_method
from trainer.methods.base import Adapter
from trainer.names import LORA_METHODS, RANKERS
from trainer.progress import Report, silent
from trainer.two_tower import make_ranker, training_positives
from trainer.two_tower.base import Ranker

Ranks = NDArray[np.int64]


class Runner(Protocol):
    """One method over the blocks. What it learnt so far can be saved and taken up again."""

    trainable_parameters: int

    @property
    def stored_bytes(self) -> int:
        """What the next block needs of this one."""
        ...

    def learn(self, t: int, report: Report) -> dict[str, Any]:
        """Learn block t; returns what is worth reporting."""
        ...

    def ranks(self, t: int, cases: list[Case]) -> Ranks:
        """Of cases of block t, with what is known now."""
        ...

    def save(self, path: Path) -> None: ...

    def load(self, path: Path) -> None: ...


def run_task(task: Task, blocks: Blocks, base: BacktestBase, folder: Path, report: Report) -> None:
    """Bring a task to its end below `folder`. report: how much of its increments is learnt."""
    settings = task.settings(blocks.settings)
    folder.mkdir(parents=True, exist_ok=True)
    first = 0 if task.method in RANKERS else 1
    begins = next((t for t in range(first, len(blocks)) if not (folder / f"block-{t + 1}.json").exists()), len(blocks))
    for t in range(begins, len(blocks)):  # of a later block than one that is gone: it did not come after this one
        (folder / f"block-{t + 1}.json").unlink(missing_ok=True)
    if begins == len(blocks):
        return
    runner = _make_runner(task, blocks, base, settings)
    if begins > first:
        runner.load(folder / f"block-{begins}.safetensors")
    for t in range(begins, len(blocks)):
        row: dict[str, Any] = {"block": t + 1}
        if t:
            coming = blocks.prequential(t)
            ranks = runner.ranks(t, coming)  # before anything of the block is learnt
            row["prequential"] = {"users": [case.user_id for case in coming], "ranks": ranks.tolist()}
        started = time.monotonic()
        learnt = runner.learn(t, _within(report, task.name, t, len(blocks)) if t else silent)
        row |= {"seconds": round(time.monotonic() - started, 3), **learnt}
        if t:
            test = blocks.test(t)
            ranks = runner.ranks(t, test)
            row["users"] = [case.user_id for case in test]
            row["ranks"] = ranks.tolist()
            row["across"] = {str(t + 1): _part(test, ranks, blocks.across(t)).tolist()}
        across = row.setdefault("across", {})
        for other in range(len(blocks)):
            if str(other + 1) not in across:
                across[str(other + 1)] = runner.ranks(other, blocks.across(other)).tolist()
        row["seconds_in_all"] = round(time.monotonic() - started, 3)
        row["trainable_parameters"], row["stored_bytes"] = runner.trainable_parameters, runner.stored_bytes
        runner.save(folder / f"block-{t + 1}.safetensors")
        _write(folder / f"block-{t + 1}.json", row)
        report(task.name, t, len(blocks) - 1)


def _within(report: Report, name: str, t: int, blocks: int) -> Report:
    """For what is learnt of block t; steps that are counted count to the task's increments."""
    return lambda step, done, total: report(name, (t - 1) * total + done, (blocks - 1) * total)


def read_blocks(folder: Path) -> list[dict[str, Any]]:
    """What run_task wrote so far: of the increments, and of D_1 (block 1) where the method learns that itself."""
    paths = sorted(folder.glob("block-*.json"), key=lambda path: int(path.stem.removeprefix("block-")))
    return [read_json(path, f"delete {folder}") for path in paths]


def read_json(path: Path, remedy: str) -> Any:
    """What a backtest wrote. Raises ArtifactError saying what to do, `remedy`, before running it again."""
    try:
        return orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); {remedy} and run again") from error


class LoraRunner:
    """A LoRA method over the frozen base: the very `adapt` of the service's updater."""

    def __init__(self, blocks: Blocks, base: BacktestBase, settings: Settings) -> None:
        self._blocks, self._base, self._settings = blocks, base, settings
        self._method = make_method(settings)
        self._adapter = base.adapter
        self.trainable_parameters = 0

    @property
    def stored_bytes(self) -> int:
        adapter = self._adapter
        return 0 if adapter is None else _bytes(adapter.tensors) + _bytes(adapter.state)

    @property
    def _backbone(self) -> Backbone:
        return self._base.backbone

    def learn(self, t: int, report: Report) -> dict[str, Any]:
        examples = self._blocks.examples(t)
        found, fitted = None, FitReport()
        if examples.learnable:  # otherwise the updater skips the window
            found, fitted = adapt(
                self._backbone, self._adapter, self._method, examples, self._base.index.codes, self._settings, report
            )
        self._adapter = found or self._adapter
        self.trainable_parameters = fitted.trainable_parameters
        return {
            "changed": found is not None,
            "losses": fitted.losses,
            "validation": [[epoch, -score] for epoch, score in fitted.scores],
            "best_epoch": fitted.best_epoch,
            "gradient_ratio": fitted.gradient_ratio,
            "penalty": fitted.penalties,
            "penalty_weight": fitted.penalty_weight,
        }

    def ranks(self, t: int, cases: list[Case]) -> Ranks:
        model = served(self._backbone, self._adapter, self._settings.beams)
        return model_ranks(model, cases, self._base.index, self._blocks.popularity(t))

    def save(self, path: Path) -> None:
        adapter = self._adapter
        tensors: dict[str, Tensor] = {}
        notes: dict[str, str] = {}
        if adapter is not None:
            tensors = {f"lora/{name}": tensor for name, tensor in adapter.tensors.items()}
            tensors |= {f"state/{name}": tensor for name, tensor in adapter.state.items()}
            notes = {"method": adapter.method, "scale": repr(adapter.scale)}
        _save(tensors, path, notes)

    def load(self, path: Path) -> None:
        notes, tensors = _load(path)
        if tensors:
            parts: dict[str, dict[str, Tensor]] = {"lora": {}, "state": {}}
            for name, tensor in tensors.items():
                kind, _, own = name.partition("/")
                parts[kind][own] = tensor
            self._adapter = Adapter(parts["lora"], float(notes["scale"]), notes["method"], parts["state"])


class RankerRunner:
    """A ranker without a language model: the two-tower family and SASRec. It learns D_1 itself."""

    def __init__(self, ranker: Ranker, blocks: Blocks) -> None:
        self._ranker, self._blocks = ranker, blocks
        self.trainable_parameters = 0

    @property
    def stored_bytes(self) -> int:
        return _bytes(self._ranker.state())

    def learn(self, t: int, report: Report) -> dict[str, Any]:
        blocks = self._blocks
        positives = training_positives(
            streams(blocks.data, t), blocks.data.users, min_events=blocks.settings.min_events_per_user
        )
        learnt = self._ranker.learn(t, positives, blocks.examples(t), partial(report, "fit"))
        self.trainable_parameters = learnt.trainable_parameters
        return {"losses": list(learnt.losses), "best_epoch": learnt.best_epoch}

    def ranks(self, t: int, cases: list[Case]) -> Ranks:
        return self._ranker.ranks(cases)

    def save(self, path: Path) -> None:
        _save(self._ranker.state(), path, {})

    def load(self, path: Path) -> None:
        self._ranker.load(_load(path)[1])


class PopularityRunner:
    """Recency-weighted popularity without seen items: the service's own fallback."""

    trainable_parameters = stored_bytes = 0

    def __init__(self, blocks: Blocks, base: BacktestBase) -> None:
        self._blocks, self._index = blocks, base.index

    def learn(self, t: int, report: Report) -> dict[str, Any]:
        return {}

    def ranks(self, t: int, cases: list[Case]) -> Ranks:
        return popularity_ranks(cases, self._index, self._blocks.popularity(t))

    def save(self, path: Path) -> None:
        _save({}, path, {})

    def load(self, path: Path) -> None:
        pass


def _make_runner(task: Task, blocks: Blocks, base: BacktestBase, settings: Settings) -> Runner:
    if task.method == "popularity":
        return PopularityRunner(blocks, base)
    if task.method in LORA_METHODS:
        return LoraRunner(blocks, base, settings)
    ranker = make_ranker(
        task.method,
        users=blocks.data.users,
        items=len(blocks.data.items),
        history_items=settings.history_items,
        seed=task.seed,
        device=base.backbone.device,
    )
    return RankerRunner(ranker, blocks)


def _part(cases: list[Case], ranks: Ranks, wanted: list[Case]) -> Ranks:
    place = {id(case): i for i, case in enumerate(cases)}
    return ranks[[place[id(case)] for case in wanted]]


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _save(tensors: Mapping[str, Tensor], path: Path, notes: dict[str, str]) -> None:
    partial = path.with_suffix(".partial")
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(
        kept, partial, metadata={"format": "1", **notes}
    )  # some metadata: without any, an empty file is unreadable
    partial.replace(path)


def _load(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({error}), and the next block starts from it; delete {path.parent} and run again, "
            "which runs this task anew"
        ) from error


def _write(path: Path, row: dict[str, Any]) -> None:
    partial = path.with_suffix(".json.partial")
    partial.write_bytes(orjson.dumps(row))
    partial.replace(path)
