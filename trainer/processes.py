"""Several processes for one training: started for it, watched, and gone with it, whichever way it ends.

The process that asks trains nothing itself: it passes on what rank 0 says of its progress, and ends all ranks as soon
as one fails, falls silent, or the work is to stop. So what hangs in one of them never hangs the updater, and only the
updater knows the store. docs/decisions/0021 has the reasons.
"""

import logging
import os
import pickle
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import structlog
import torch
import torch.distributed as dist

from service.errors import AdaptideError, ConfigurationError, LimitExceeded, Unavailable
from service.generation.backbone import pick_device
from service.kit.allocator import keep_freed_memory
from service.settings import Settings
from service.telemetry import configure_logging
from trainer.group import Group
from trainer.limits import out_of_memory, why
from trainer.progress import Report, silent

T = TypeVar("T")
START = 900.0
"""Seconds that a process may take to start: torch and transformers from a cold disk, on a machine with other work."""
LAST_WORDS = 2.0
"""Seconds in which ranks that fail after another may say so too."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Together:
    """processes: how many train. timeout: longest silence of one. threads: of each, on a CPU."""

    processes: int
    device: torch.device
    shard: bool
    timeout: timedelta
    threads: int = 1
    log_level: str = "WARNING"

    @classmethod
    def of(cls, settings: Settings) -> "Together | None":
        """As the settings say; None for a single process. Raises ConfigurationError for what cannot be."""
        if settings.processes == 1:
            if settings.shard:
                raise ConfigurationError(
                    "ADAPTIDE_SHARD spreads a model over processes: set ADAPTIDE_PROCESSES above 1"
                )
            return None
        device = pick_device(settings.device)
        if device.type == "cuda" and (found := torch.cuda.device_count()) < settings.processes:
            raise ConfigurationError(
                f"ADAPTIDE_PROCESSES={settings.processes} wants a GPU for each and this machine has {found}; lower it, "
                "or set ADAPTIDE_DEVICE=cpu"
            )
        threads = max(1, torch.get_num_threads() // settings.processes)
        level = logging.getLevelName(logging.getLogger().getEffectiveLevel())
        return cls(settings.processes, device, settings.shard, settings.processes_timeout, threads, level)

    def run(self, job: Callable[..., T], arguments: Sequence[object], report: Report = silent) -> T:
        """What `job(group, report, *arguments)` gives on rank 0.

        job: of a module's own level. Raises Unavailable when a rank dies or falls silent, and what the job raised when
        that is an AdaptideError; by then no rank is left.
        """
        work = pickle.dumps((job, tuple(arguments)))
        context = get_context("spawn")
        ranks: list[tuple[BaseProcess, Connection]] = []
        with tempfile.TemporaryDirectory(prefix="adaptide-ranks-") as folder:  # nobody else can join the group
            try:
                for rank in range(self.processes):
                    own, other = context.Pipe()
                    process = context.Process(
                        target=_rank, args=(self, rank, Path(folder) / "meet", other), daemon=True
                    )
                    process.start()
                    other.close()
                    ranks.append((process, own))
                result = self._watch(ranks, work, report)
                for ended, _ in ranks:
                    ended.join(self.timeout.total_seconds())
                return pickle.loads(result)  # type: ignore[no-any-return]  # noqa: S301  # from our own child's pipe
            finally:
                for left, pipe in ranks:
                    left.kill()
                    left.join()
                    pipe.close()

    def _watch(self, ranks: Sequence[tuple[BaseProcess, Connection]], work: bytes, report: Report) -> bytes:
        """Hand out the work, start all at once, and wait until rank 0's result has come."""
        waiting, ready = {own: rank for rank, (_, own) in enumerate(ranks)}, set[int]()
        last, said = time.monotonic(), ("training processes", 0, len(ranks))
        limit = START
        result = b""
        while waiting:
            for own in wait(list(waiting), timeout=0.2):
                assert isinstance(own, Connection)  # noqa: S101  # nothing else was waited for
                rank = waiting[own]
                try:
                    kind, *rest = own.recv()
                except (EOFError, OSError):
                    raise self._failure(ranks, waiting, {}) from None
                last = time.monotonic()
                if kind == "started":  # not earlier: a pipe holds little, and whoever fills it waits
                    with suppress(OSError):  # it is gone: the next look says so
                        own.send_bytes(work)
                elif kind == "ready":
                    ready.add(rank)
                    if len(ready) == len(ranks):
                        limit = 2 * self.timeout.total_seconds()  # the ranks' own calls to each other end before
                        for _, each in ranks:
                            with suppress(OSError):
                                each.send("go")
                elif kind == "progress":
                    said = rest[0], rest[1], rest[2]
                elif kind == "failed":
                    raise self._failure(ranks, waiting, {rank: rest[0]})
                else:
                    result = rest[0] or result
                    del waiting[own]
            report(*said)  # also without news: it is how the asking process says that all is to stop
            if time.monotonic() - last > limit:
                raise Unavailable(
                    f"the training processes said nothing for {limit:.0f} s and were ended "
                    "(ADAPTIDE_PROCESSES_TIMEOUT sets half of that)"
                )
        return result

    def _failure(
        self,
        ranks: Sequence[tuple[BaseProcess, Connection]],
        waiting: dict[Connection, int],
        reasons: dict[int, AdaptideError | str],
    ) -> AdaptideError:
        """Why it failed: a rank that died without a word before those that missed it."""
        ends = time.monotonic() + LAST_WORDS
        while time.monotonic() < ends and len(reasons) < len(ranks) and all(p.is_alive() for p, _ in ranks):
            for own in wait(list(waiting), timeout=0.1):
                assert isinstance(own, Connection)  # noqa: S101  # nothing else was waited for
                with suppress(EOFError, OSError):
                    kind, *rest = own.recv()
                    if kind == "failed":
                        reasons[waiting[own]] = rest[0]
        for rank, (process, _) in enumerate(ranks):
            process.join(0.1)
            if process.exitcode is not None and process.exitcode < 0:
                name = signal.Signals(-process.exitcode).name
                return Unavailable(f"training process {rank} of {len(ranks)} was ended by {name}")
        for reason in reasons.values():
            if isinstance(reason, AdaptideError):
                return reason
        rank, told = next(iter(reasons.items()), (-1, "one of them ended without a word"))
        return Unavailable(
            f"training with {len(ranks)} processes failed: {told}" + (f" (process {rank})" * (rank >= 0))
        )


def _rank(together: Together, rank: int, meeting: Path, leader: Connection) -> None:
    """A rank's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the leader says what it means
    threading.Thread(target=_end_with_the_leader, daemon=True).start()
    configure_logging(together.log_level)
    try:
        leader.send(("started",))
        job, arguments = pickle.loads(leader.recv_bytes())  # noqa: S301  # from our own parent's pipe
        leader.send(("ready",))
        if leader.recv() != "go":
            return
        group = _join(together, rank, meeting)
        report = _teller(leader) if rank == 0 else silent
        result = job(group, report, *arguments)
        dist.barrier()
        leader.send(("done", pickle.dumps(result) if rank == 0 else b""))
        dist.destroy_process_group()
    except Exception as error:  # whatever it was, the leader must know
        log.warning("training_process_failed", rank=rank, error=f"{type(error).__name__}: {error}"[:1000])
        told: AdaptideError | str = f"{type(error).__name__}: {error}"[:500]
        if isinstance(error, AdaptideError):
            told = error
        elif out_of_memory(error):
            told = LimitExceeded(why(error))
        with suppress(OSError):
            leader.send(("failed", told))
        os._exit(1)  # not through collectives that wait for the others


def _join(together: Together, rank: int, meeting: Path) -> Group:
    device = together.device
    if device.type == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(together.threads)
        keep_freed_memory()
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=meeting.as_uri(),
        rank=rank,
        world_size=together.processes,
        timeout=together.timeout,
        device_id=device if device.type == "cuda" else None,
    )
    return Group(rank, together.processes, device, together.shard)


def _teller(leader: Connection) -> Report:
    def tell(step: str, done: int, total: int) -> None:
        leader.send(("progress", step, done, total))

    return tell


def _end_with_the_leader() -> None:
    leader: Any = parent_process()
    leader.join()
    os._exit(1)
