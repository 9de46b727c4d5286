"""A backtest from its plan to its raw results: bases, then tasks, on all cores; a killed run goes on where it was."""

import gc
import multiprocessing
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import torch

from service.errors import AdaptideError, Conflict
from service.generation.backbone import pick_device
from service.kit.machine import cores
from service.settings import Settings
from trainer.backtest.bases import base_folder, fit_base, made_from, open_base, take_base
from trainer.backtest.blocks import Blocks
from trainer.backtest.data import BacktestData, check_scorable
from trainer.backtest.groups import asked_groups, user_groups
from trainer.backtest.tasks import Plan, Task
from trainer.backtest.work import read_blocks, run_task
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
        """Raw results of every task of the plan. Raises DatasetError, Conflict (another backtest's folder)."""
        check_scorable(self.data, self.settings.min_events_per_user)
        self._claim()
        remove_partial(self.out)
        seeds = range(self.plan.seeds)
        with _Pool(self, report) as pool:
            pool.run("bases", [(f"base, seed {seed}", partial(_fit_base, seed)) for seed in seeds])
            pool.run("tasks", [(task.name, partial(_run_task, task)) for task in self.plan.tasks()])
        return self.raw()

    def raw(self) -> dict[str, Any]:
        """What is in the folder so far, as trainer.backtest.report takes it."""
        blocks = Blocks(self.data, self.settings)
        index = open_base(self.data, base_folder(self.out, 0), self.settings).index
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
            "bases": [
                orjson.loads((base_folder(self.out, s) / "base.json").read_bytes()) for s in range(self.plan.seeds)
            ],
            "tasks": [row for task in self.plan.tasks() if (row := self._row(task))["blocks"]],
            "planned": len(self.plan.tasks()),
            "groups": user_groups(blocks, index.codes),
            "prequential_groups": asked_groups(blocks, index.codes),
        }

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


class _Pool:
    """Worker processes that share the data; one thread per worker, since small models only wait for each other."""

    def __init__(self, backtest: Backtest, report: Report) -> None:
        context = multiprocessing.get_context("spawn")
        self._report = report
        self._news: multiprocessing.Queue[tuple[str, float]] = context.Queue()
        threads = max(1, cores() // backtest.workers)
        self._executor = ProcessPoolExecutor(
            backtest.workers, context, _begin, (backtest, threads, self._news, os.getpid())
        )

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:  # workers in the middle of a task would hold the end up: each of its blocks is kept
            for process in list((self._executor._processes or {}).values()):
                process.terminate()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def run(self, what: str, jobs: list[tuple[str, Callable[[], None]]]) -> None:
        """All jobs; raises the first error."""
        share = dict.fromkeys((name for name, _ in jobs), 0.0)
        waiting: set[Future[None]] = set()
        for _, job in jobs:
            waiting.add(self._executor.submit(job))
        while waiting:
            done, waiting = wait(waiting, timeout=0.5)
            for future in done:
                future.result()
            for name, part in self._drain():
                share[name] = part
            self._report(what, int(1000 * sum(share.values())), 1000 * len(jobs))
        self._report(what, 1000 * len(jobs), 1000 * len(jobs))

    def _drain(self) -> Iterable[tuple[str, float]]:
        while True:
            try:
                yield self._news.get_nowait()
            except queue.Empty:
                return


@dataclass(slots=True)
class _Worker:
    """What a worker process holds."""

    backtest: Backtest
    blocks: Blocks
    news: "multiprocessing.Queue[tuple[str, float]]"
    whole: float | None = None
    """The share of a GPU that this process had before it was divided among workers; None: not asked yet."""


_worker: _Worker | None = None


def _begin(backtest: Backtest, threads: int, news: "multiprocessing.Queue[tuple[str, float]]", parent: int) -> None:
    global _worker
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _worker = _Worker(backtest, Blocks(backtest.data, backtest.settings), news)


def _end_with(parent: int) -> None:
    """A worker whose parent was killed ends too, instead of computing for nobody."""
    while os.getppid() == parent:
        threading.Event().wait(1.0)
    os._exit(1)


def _fit_base(seed: int) -> None:
    worker = _working()
    backtest = worker.backtest
    _share_device(backtest, backtest.plan.seeds)
    name = f"base, seed {seed}"

    def report(step: str, done: int, total: int) -> None:
        if step == "base":
            worker.news.put((name, done / max(total, 1)))

    settings = backtest.settings.model_copy(update={"seed": seed})
    if backtest.bases is not None:
        wanted = made_from(backtest.data, backtest.recipe, settings)
        take_base(base_folder(backtest.bases, seed), base_folder(backtest.out, seed), wanted)
    fit_base(backtest.data, backtest.recipe, settings, base_folder(backtest.out, seed), report)
    worker.news.put((name, 1.0))


def _run_task(task: Task) -> None:
    worker = _working()
    backtest = worker.backtest
    _share_device(backtest, len(backtest.plan.tasks()))
    base = open_base(backtest.data, base_folder(backtest.out, task.seed), backtest.settings)

    def report(step: str, done: int, total: int) -> None:
        worker.news.put((task.name, done / total))

    try:
        run_task(task, worker.blocks, base, backtest.out / "tasks" / task.name, report)
    except AdaptideError as error:
        raise type(error)(f"{task.name}: {error.detail}") from error
    except Exception as error:
        error.add_note(f"This was in {task.name}.")
        raise
    worker.news.put((task.name, 1.0))


def _share_device(backtest: Backtest, jobs: int) -> None:
    """Let a worker take of a GPU what is its own beside those that work at the same time, and give the rest back.

    What this process has of it to begin with (all, unless PYTORCH_ALLOC_CONF says less) is what they share.
    """
    worker = _working()
    if pick_device(backtest.settings.device).type != "cuda":
        return
    if worker.whole is None:
        worker.whole = torch.cuda.get_per_process_memory_fraction()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(worker.whole / min(backtest.workers, jobs))


def _working() -> _Worker:
    assert _worker is not None  # noqa: S101  # _begin has run in every worker
    return _worker


def _common(settings: Settings) -> dict[str, Any]:
    dumped = settings.model_dump(mode="json", exclude=_NOT_COMMON)
    return {name: sorted(value) if isinstance(value, list) else value for name, value in dumped.items()}


def _unlike(held: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return [f"ADAPTIDE_{name.upper()}" for name in wanted if held.get(name) != wanted[name]]


def remove_partial(out: Path) -> None:
    """Staging folders that a killed run left."""
    for path in (out / "bases").glob(".staging-*"):
        shutil.rmtree(path, ignore_errors=True)
