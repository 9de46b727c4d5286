"""A model that is lent to batches and closed when it was replaced and its last user has left."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from service.generation.engine import ServedModel

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Slot:
    """A model with the number of its users; it is closed when it is retired and the last one has left."""

    model: ServedModel
    users: int = 0
    retired: bool = False


class Lending:
    """One model or none. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slot: _Slot | None = None
        self._stopped = False

    @property
    def model(self) -> ServedModel | None:
        """What is lent now, to be compared, not asked."""
        slot = self._slot
        return None if slot is None else slot.model

    @contextmanager
    def lease(self) -> Iterator[ServedModel | None]:
        """The model, kept whole until the block ends; None while there is none."""
        with self._lock:
            slot = self._slot
            if slot is not None:
                slot.users += 1
        try:
            yield slot.model if slot is not None else None
        finally:
            if slot is not None:
                self._leave(slot)

    def flip(self, model: ServedModel | None, also: Callable[[], None] = lambda: None) -> None:
        """Lend this one from now on, do `also` in the same instant, and let the one before it drain."""
        with self._lock:
            old, self._slot = self._slot, None if model is None else _Slot(model)
            also()
            if self._stopped and self._slot is not None:  # loaded while the thread was being stopped
                old, self._slot = self._slot, None
            drained = old is not None and old.users == 0
            if old is not None:
                old.retired = True
        if old is not None and drained:
            close(old.model)

    def stop(self) -> None:
        """Lend nothing more; the model is freed when its last user has left."""
        self._stopped = True
        self.flip(None)

    def _leave(self, slot: _Slot) -> None:
        with self._lock:
            slot.users -= 1
            last = slot.retired and slot.users == 0
        if last:
            close(slot.model)


def close(model: ServedModel) -> None:
    try:
        model.close()
    except Exception:  # freeing an old model must not fail the request that used it last
        log.exception("model_close_failed", adapter_version=model.adapter_version)
