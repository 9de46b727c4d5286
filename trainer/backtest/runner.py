"""A backtest from its plan to its raw results: bases, then tasks, on all cores; a killed run goes on where it was."""

import shutil
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import torch

from service.errors import Conflict, InvalidRequest
from service.generation.backbone import pick_device
from service.kit.machine import cores
from service.settings import Settings
from trainer.backtest.bases import base_folder, open_index
from trainer.backtest.blocks import Blocks
from trainer.backtest.data import BacktestData, check_scorable
from trainer.backtest.groups import asked_groups, user_groups
from trainer.backtest.tasks import Plan, Task
from trainer.backtest.work import read_blocks
from trainer.backtest.workers import Pool, fit_seed, run_one
from trainer.progress import Report
from trainer.recipe import BaseRecipe

FORMAT = 1
# What a task sets by itself, and what plays no part in a backtest's figures.
_NOT_COMMON = {
    *("home", "database_url", "artifacts_url", "host", "port", "log_level", "method", "seed", "threads"),
    *("keys_without_store", "update_silence"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Backtest:
    """out: the folder of bases, tasks and results; bases: an earlier one whose bases are taken.

    command: how it was called, for the report.
    """

    data: BacktestData
    recipe: BaseRecipe
    settings: Settings
    plan: Plan
    out: Path
    workers: int
    command: str
    split: str
    bases: Path | None = None

    def run(self, report: Report) -> dict[str, Any]:
        """Raw results of every task of the plan. Raises DatasetError, Conflict (another backtest's folder).

        What fails does not end what else there is to do; the first error is raised when that is done.
        """
        check_scorable(self.data, self.settings.min_events_per_user)
        self._claim()
        remove_partial(self.out)
        seeds = range(self.plan.seeds)
        with Pool(self, report) as pool:
            pool.run("bases", [(f"base, seed {seed}", partial(fit_seed, seed)) for seed in seeds])
            pool.run("tasks", [(task.name, partial(run_one, task)) for task in self.plan.tasks()])
        return self._raw()

    def so_far(self) -> dict[str, Any]:
        """Raw results of what is done, also by a process that is at it. Raises InvalidRequest where nothing is."""
        if not self._bases():
            raise InvalidRequest(f"{self.out} holds no base of these seeds yet: there is nothing to show")
        self._claim()
        return self._raw()

    def _raw(self) -> dict[str, Any]:
        """What is in the folder, as trainer.backtest.report takes it."""
        blocks = Blocks(self.data, self.settings)
        bases = self._bases()
        index = open_index(self.data, bases[0])
        return {
            "format": FORMAT,
            "data": {
                "name": self.data.name,
                "digest": self.data.digest,
                "users": len(self.data.users),
                "items": len(self.data.items),
                "interactions": [len(block) for block in self.data.blocks],
                "not_learnt": [t + 1 for t in range(1, len(blocks)) if not blocks.examples(t).learnable],
                "scored_users": [len(blocks.test(t)) for t in range(len(self.data.blocks))],
                "split": self.split,
                "notes": list(self.data.notes),
            },
            "settings": {**_common(self.settings), "recipe": asdict(self.recipe)},
            "machine": {
                "cores": cores(),
                "workers": self.workers,
                "device": pick_device(self.settings.device).type,
                "torch": torch.__version__,
            },
            "command": self.command,
            "bases": [orjson.loads((folder / "base.json").read_bytes()) for folder in bases],
            "tasks": [row for task in self.plan.tasks() if (row := self._row(task))["blocks"]],
            "planned": len(self.plan.tasks()),
            "groups": user_groups(blocks, index.codes),
            "prequential_groups": asked_groups(blocks, index.codes),
        }

    def _bases(self) -> list[Path]:
        folders = [base_folder(self.out, seed) for seed in range(self.plan.seeds)]
        return [folder for folder in folders if (folder / "base.json").exists()]

    def _row(self, task: Task) -> dict[str, Any]:
        rows = read_blocks(self.out / "tasks" / task.name)
        return {
            "method": task.method,
            "variant": {task.variant[0].value: task.variant[1]} if task.variant else {},
            "seed": task.seed,
            "complete": len(rows) == len(self.data.blocks) - 1,
            "seconds": round(sum(row["seconds"] for row in rows), 3),
            "trainable_parameters": max((row["trainable_parameters"] for row in rows), default=0),
            "stored_bytes": rows[-1]["stored_bytes"] if rows else 0,
            "blocks": rows,
        }

    def _claim(self) -> None:
        """One folder holds one comparison: the same data, base and settings; methods and seeds may be added."""
        self.out.mkdir(parents=True, exist_ok=True)
        own = {
            "format": FORMAT,
            "data": self.data.digest,
            "recipe": asdict(self.recipe),
            "settings": _common(self.settings),
        }
        wanted = orjson.loads(orjson.dumps(own, default=list))
        path = self.out / "backtest.json"
        if path.exists():
            held = orjson.loads(path.read_bytes())
            if held != wanted:
                parts = [
                    name if name != "settings" else ", ".join(_unlike(held["settings"], wanted["settings"]))
                    for name in wanted
                    if held.get(name) != wanted[name]
                ]
                raise Conflict(
                    f"{self.out} holds a backtest with other {' and '.join(parts)}; give another --out or remove it"
                )
            return
        if any(self.out.iterdir()):
            raise Conflict(f"{self.out} is not empty and holds no backtest; give another --out")
        partial_path = path.with_suffix(".partial")
        partial_path.write_bytes(orjson.dumps(wanted, option=orjson.OPT_INDENT_2))
        partial_path.replace(path)


def _common(settings: Settings) -> dict[str, Any]:
    dumped = settings.model_dump(mode="json", exclude=_NOT_COMMON)
    return {name: sorted(value) if isinstance(value, list) else value for name, value in dumped.items()}


def _unlike(held: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return [f"ADAPTIDE_{name.upper()}" for name in wanted if held.get(name) != wanted[name]]


def remove_partial(out: Path) -> None:
    """Staging folders that a killed run left."""
    for path in (out / "bases").glob(".staging-*"):
        shutil.rmtree(path, ignore_errors=True)
