"""The engine that ADAPTIDE_ENGINE names, made when the first model is loaded: until then no deep-learning import."""

from collections.abc import Callable

import structlog

from service.adapters.artifacts import VerifiedAdapter, VerifiedBase
from service.generation.engine import Engine, ServedModel
from service.settings import Settings

log = structlog.get_logger(__name__)


def _log_capture(done: int, of: int, batch: int, tokens: int, beams: int, seconds: float) -> None:
    log.info("search_captured", done=done, of=of, batch=batch, tokens=tokens, beams=beams, seconds=round(seconds, 1))


class SelectedEngine:
    """An Engine that becomes the real one at its first `load`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engine: Engine | None = None
        self._tuned = False

    def load(self, base: VerifiedBase, adapter: VerifiedAdapter | None) -> ServedModel:
        """Called by one thread at a time (service.adapters.activation)."""
        if self._engine is None:
            from service.generation.graphs import sizes_for
            from service.generation.torch_engine import TorchEngine

            settings = self._settings
            self._engine = TorchEngine(
                device=settings.device,
                dtype=settings.dtype,
                beams=settings.beams,
                threads=settings.threads,
                sizes=sizes_for(settings.batch_max_requests, settings.history_items, settings.beams),
                compiled=settings.compile,
                on_capture=_log_capture,
                history_items=settings.history_items,
            )
        return self._engine.load(base, adapter)

    def tune(self, search: Callable[[], object]) -> None:
        """Choose the CPU threads by timing the first model's `search`, unless the settings name their number."""
        from service.generation.backbone import pick_device
        from service.generation.threads import choose_threads

        if not self._tuned and not self._settings.threads and pick_device(self._settings.device).type == "cpu":
            choose_threads(search)
        self._tuned = True
