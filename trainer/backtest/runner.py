"""A backtest from its plan to its raw results: bases, then tasks, on all cores; a killed run goes on where it was."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import torch

from service.errors import AdaptideError, Conflict, InvalidRequest
from service.generation.backbone import pick_device
from service.kit.files import locked
from service.kit.machine import cores
from service.settings import Settings
from trainer.backtest.bases import DECIDES as BASE_SETTINGS
from trainer.backtest.bases import base_folder, open_index
from trainer.backtest.blocks import Blocks
from trainer.backtest.data import BacktestData, check_scorable
from trainer.backtest.groups import asked_groups, user_groups
from trainer.backtest.tasks import Plan, Task
from trainer.backtest.work import read_blocks, read_json
from trainer.backtest.workers import Pool, base_part, fit_seed, run_one
from trainer.learn import DECIDES as TRAINING_SETTINGS
from trainer.progress import Report
from trainer.recipe import BaseRecipe

FORMAT = 1
LOCK = "lock"
_COMMON = {
    *(BASE_SETTINGS | TRAINING_SETTINGS) - {"seed"},
    *("update_epochs", "update_min_steps", "update_batch_size", "learning_rate_update", "weight_decay"),
    *("beams", "evaluation_users", "evaluation_items_per_user"),
}
"""Settings that a backtest's figures depend on, beside what a task sets itself."""


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
        seeds = range(self.plan.seeds)
        self._make_folder()
        with _alone(self.out):
            self._claim()
            remove_partial(self.out)
            with Pool(self, report) as pool:
                no_base = pool.run("bases", [(base_part(seed), partial(fit_seed, seed)) for seed in seeds])
                ready = [task for task in self.plan.tasks() if base_part(task.seed) not in no_base]
                failed = pool.run("tasks", [(task.name, partial(run_one, task)) for task in ready])
        for error in [*no_base.values(), *failed.values()]:
            if isinstance(error, AdaptideError) and len(failed) < len(ready):
                raise type(error)(f"{error.detail}; the rest is done and kept: --so-far shows it") from error
            raise error
        return self._raw()

    def so_far(self) -> dict[str, Any]:
        """Raw results of what is done, also by a process that is at it. Raises InvalidRequest where nothing is."""
        if not self._bases():
            raise InvalidRequest(f"{self.out} holds no base of these seeds yet: there is nothing to show")
        if unlike := [name for name in _unlike(self._held(), self._wanted()) if name != "device"]:
            raise self._another(unlike)
        return self._raw()

    def _raw(self) -> dict[str, Any]:
        """What is in the folder, as trainer.backtest.report takes it."""
        blocks = Blocks(self.data, self.settings)
        bases, rows = self._bases(), [self._row(task) for task in self.plan.tasks()]
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
                "device": self._held().get("device") or pick_device(self.settings.device).type,
                "torch": torch.__version__,
            },
            "command": self.command,
            "bases": [read_json(folder / "base.json", f"delete {folder}") for folder in bases],
            "tasks": [row for row in rows if row["blocks"]],
            "planned": len(rows),
            "planned_seeds": list(range(self.plan.seeds)),
            "not_begun": sorted({row["method"] for row in rows if not row["blocks"]}),
            "groups": user_groups(blocks, index.codes),
            "prequential_groups": asked_groups(blocks, index.codes),
        }

    def _bases(self) -> list[Path]:
        folders = [base_folder(self.out, seed) for seed in range(self.plan.seeds)]
        return [folder for folder in folders if (folder / "base.json").exists()]

    def _row(self, task: Task) -> dict[str, Any]:
        found = read_blocks(self.out / "tasks" / task.name)
        rows = [row for row in found if row["block"] > 1]
        return {
            "method": task.method,
            "variant": {task.variant[0].value: task.variant[1]} if task.variant else {},
            "seed": task.seed,
            "complete": len(rows) == len(self.data.blocks) - 1,
            "seconds": round(sum(row["seconds"] for row in rows), 3),
            "trainable_parameters": max((row["trainable_parameters"] for row in rows), default=0),
            "stored_bytes": rows[-1]["stored_bytes"] if rows else 0,
            "blocks": rows,
            "first_stage": next((row.get("across", {}) for row in found if row["block"] == 1), {}),
        }

    def _make_folder(self) -> None:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            if not (self.out / "backtest.json").exists() and {path.name for path in self.out.iterdir()} - {LOCK}:
                raise Conflict(f"{self.out} is not empty and holds no backtest; give another --out")
        except OSError as error:
            raise cannot_write(self.out, error) from error

    def _claim(self) -> None:
        """One folder holds one comparison: the same data, base, settings and kind of device; methods and seeds may be
        added."""
        wanted = self._wanted()
        if not (unlike := _unlike(self._held(), wanted)):
            return
        if any((self.out / "bases").glob("seed-*")) or any((self.out / "tasks").glob("*")):
            raise self._another(unlike)
        path = self.out / "backtest.json"
        try:
            path.with_suffix(".partial").write_bytes(orjson.dumps(wanted, option=orjson.OPT_INDENT_2))
            path.with_suffix(".partial").replace(path)
        except OSError as error:
            raise cannot_write(self.out, error) from error

    def _wanted(self) -> dict[str, Any]:
        own = {
            "format": FORMAT,
            "data": self.data.digest,
            "recipe": asdict(self.recipe),
            "device": pick_device(self.settings.device).type,
            "settings": _common(self.settings),
        }
        wanted: dict[str, Any] = orjson.loads(orjson.dumps(own, default=list))
        return wanted

    def _held(self) -> dict[str, Any]:
        path = self.out / "backtest.json"
        held: dict[str, Any] = read_json(path, f"delete {self.out}") if path.exists() else {}
        return held

    def _another(self, unlike: list[str]) -> Conflict:
        return Conflict(f"{self.out} holds a backtest with other {', '.join(unlike)}; give another --out or remove it")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Raises Conflict while another process is at work in the folder; a killed one is not."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(out / LOCK))
        except BlockingIOError:
            raise Conflict(f"another backtest is at work in {out}; wait for it, or give another --out") from None
        except OSError as error:
            raise cannot_write(out, error) from error
        yield


def cannot_write(out: Path, error: OSError) -> InvalidRequest:
    return InvalidRequest(f"--out {out} cannot be written to ({error.strerror}); name another folder")


def _common(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json", include=_COMMON)


def _unlike(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What another comparison's folder differs in; what it does not name, or names beyond, plays no part."""
    found = [name for name in ("format", "data") if held.get(name) != wanted[name]]
    if held.get("device", wanted["device"]) != wanted["device"]:
        found.append("device")
    if held.get("recipe") != wanted["recipe"]:
        one, other = (_leaves(own.get("recipe") or {}) for own in (held, wanted))
        found.append(f"base ({', '.join(sorted({name for name, _ in one ^ other}))})")
    settings = held.get("settings", {})
    return found + [
        f"ADAPTIDE_{name.upper()}" for name, own in wanted["settings"].items() if settings.get(name, own) != own
    ]


def _leaves(recipe: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Every value of a recipe and what is within it, by its own name."""
    found: set[tuple[str, str]] = set()
    for name, own in recipe.items():
        found |= _leaves(own) if isinstance(own, dict) else {(name, str(own))}
    return found


def remove_partial(out: Path) -> None:
    """Staging folders that a killed run left."""
    for path in (out / "bases").glob(".staging-*"):
        shutil.rmtree(path, ignore_errors=True)
