"""The processes of a backtest: each fits a seed's base or runs a task, says how far it is and names what failed."""

import gc
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import torch

from service.errors import AdaptideError
from service.generation.backbone import pick_device
from service.kit.machine import cores
from trainer.backtest.bases import base_folder, fit_base, made_from, open_base, take_base
from trainer.backtest.blocks import Blocks
from trainer.backtest.tasks import Task
from trainer.backtest.work import run_task
from trainer.progress import Report

if TYPE_CHECKING:
    from trainer.backtest.runner import Backtest

log = structlog.get_logger(__name__)


class Pool:
    """Worker processes that share the data; one thread per worker, since small models only wait for each other."""

    def __init__(self, backtest: "Backtest", report: Report) -> None:
        context = multiprocessing.get_context("spawn")
        self._report = report
        self._news: multiprocessing.Queue[tuple[str, float]] = context.Queue()
        threads = max(1, cores() // backtest.workers)
        self._executor = ProcessPoolExecutor(
            backtest.workers, context, _begin, (backtest, threads, self._news, os.getpid())
        )

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:  # workers in the middle of a task would hold the end up: each of its blocks is kept
            for process in list((self._executor._processes or {}).values()):
                process.terminate()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def run(self, what: str, jobs: list[tuple[str, Callable[[], None]]]) -> dict[str, BaseException]:
        """All jobs; which of them failed, and with what, in that order."""
        failed: dict[str, BaseException] = {}
        share = dict.fromkeys((name for name, _ in jobs), 0.0)
        names: dict[Future[None], str] = {self._executor.submit(job): name for name, job in jobs}
        waiting = set(names)
        while waiting:
            done, waiting = wait(waiting, timeout=0.5)
            for future in done:
                if error := future.exception():
                    failed[names[future]] = error
                    unforeseen = None if isinstance(error, AdaptideError) else error
                    log.error("backtest_part_failed", part=names[future], error=str(error), exc_info=unforeseen)
            with suppress(queue.Empty):
                while True:
                    name, part = self._news.get_nowait()
                    if name in share:  # the last ones of the jobs before may come late
                        share[name] = part
            self._report(what, int(1000 * sum(share.values())), 1000 * len(jobs))
        self._report(what, 1000 * len(jobs), 1000 * len(jobs))
        return failed


@dataclass(slots=True)
class _Worker:
    """What a worker process holds."""

    backtest: "Backtest"
    blocks: Blocks
    news: "multiprocessing.Queue[tuple[str, float]]"
    whole: float | None = None
    """The share of a GPU that this process had before it was divided among workers; None: not asked yet."""


_worker: _Worker | None = None


def _begin(backtest: "Backtest", threads: int, news: "multiprocessing.Queue[tuple[str, float]]", parent: int) -> None:
    global _worker
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _worker = _Worker(backtest, Blocks(backtest.data, backtest.settings), news)


def _end_with(parent: int) -> None:
    """A worker whose parent was killed ends too, instead of computing for nobody."""
    while os.getppid() == parent:
        threading.Event().wait(1.0)
    os._exit(1)


def base_part(seed: int) -> str:
    """What the base of a seed is called among the parts of a backtest."""
    return f"base, seed {seed}"


def fit_seed(seed: int) -> None:
    worker = _working()
    backtest = worker.backtest
    _share_device(backtest, backtest.plan.seeds)
    name = base_part(seed)

    def report(step: str, done: int, total: int) -> None:
        if step == "base":
            worker.news.put((name, done / max(total, 1)))

    settings = backtest.settings.model_copy(update={"seed": seed})
    if backtest.bases is not None:
        wanted = made_from(backtest.data, backtest.recipe, settings)
        take_base(base_folder(backtest.bases, seed), base_folder(backtest.out, seed), wanted)
    fit_base(backtest.data, backtest.recipe, settings, base_folder(backtest.out, seed), report)
    worker.news.put((name, 1.0))


def run_one(task: Task) -> None:
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


def _share_device(backtest: "Backtest", jobs: int) -> None:
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
