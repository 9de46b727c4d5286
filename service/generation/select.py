"""The engine that ADAPTIDE_ENGINE names, made when the first model is loaded: until then no deep-learning import."""

from service.adapters.artifacts import VerifiedAdapter, VerifiedBase
from service.generation.engine import Engine, ServedModel
from service.settings import Settings


class SelectedEngine:
    """An Engine that becomes the real one at its first `load`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engine: Engine | None = None

    def load(self, base: VerifiedBase, adapter: VerifiedAdapter | None) -> ServedModel:
        """Called by one thread at a time (service.adapters.activation)."""
        if self._engine is None:
            from service.generation.torch_engine import TorchEngine

            settings = self._settings
            self._engine = TorchEngine(
                device=settings.device, dtype=settings.dtype, beams=settings.beams, threads=settings.threads
            )
        return self._engine.load(base, adapter)
