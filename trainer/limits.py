"""What an attempt at an update may take. One that takes more is abandoned between two steps; its window says why."""

import time
from dataclasses import dataclass, field
from datetime import timedelta

import psutil
import torch

from service.errors import LimitExceeded
from service.settings import Settings
from trainer.progress import Report

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one attempt, which begins now. timeout: None for none. memory: bytes, 0 for no limit."""

    timeout: timedelta | None
    memory: int
    _started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        return cls(settings.update_timeout, settings.update_memory_bytes)

    def check(self) -> None:
        """Raises LimitExceeded."""
        taken = time.monotonic() - self._started
        if self.timeout is not None and taken > self.timeout.total_seconds():
            raise LimitExceeded(
                f"the update took more than {self.timeout.total_seconds():g} s (ADAPTIDE_UPDATE_TIMEOUT) and was "
                "abandoned; allow it more, or give it less to do (ADAPTIDE_UPDATE_EPOCHS, ADAPTIDE_WINDOW_MAX_EVENTS)"
            )
        if self.memory and (found := resident()) > self.memory:
            raise LimitExceeded(
                f"the update took {found / MIB:.0f} MiB of memory where {self.memory / MIB:.0f} are allowed "
                "(ADAPTIDE_UPDATE_MEMORY_BYTES) and was abandoned; allow it more, or make batches or windows smaller"
            )

    def watching(self, report: Report) -> Report:
        """`report`, and each time it is called a look at the limits."""

        def watched(step: str, done: int, total: int) -> None:
            self.check()
            report(step, done, total)

        return watched


def resident() -> int:
    """Bytes in memory of this process and of those that it started."""
    this = psutil.Process()
    total: int = this.memory_info().rss
    for child in this.children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory ran out: Python's, a GPU's, or torch's CPU allocator's (a bare RuntimeError)."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def why(error: BaseException) -> str:
    """What a window says of an error that nobody expected."""
    told = f"{type(error).__name__}: {error}".rstrip(": ")
    if not out_of_memory(error):
        return told
    return f"the update ran out of memory and was abandoned; smaller batches or windows need less ({told[:500]})"
