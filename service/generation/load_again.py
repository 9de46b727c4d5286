"""A model loaded as it was: on the device, in the number type and with the threads that it computed with."""

from collections.abc import Mapping
from typing import Any

import torch

from service.adapters.artifacts import VerifiedAdapter, VerifiedBase
from service.generation.engine import ServedModel
from service.generation.select import SelectedEngine
from service.kit.machine import cpu_name
from service.settings import Device, Dtype, EngineName, Settings

DTYPES = frozenset(Dtype)


def load_as(
    settings: Settings, by: Mapping[str, Any] | None, base: VerifiedBase, adapter: VerifiedAdapter | None
) -> tuple[ServedModel, list[str]]:
    """The model on what it was computed by (Batch.by), as far as this machine is it; and what is not the same here.

    Raises as Engine.load and SelectedEngine do.
    """
    if by is None or by.get("engine") != "torch":
        return SelectedEngine(settings).load(base, adapter), [
            "the engine did not say how it computed: last digits may differ from run to run"
        ]
    kind, notes = by["kind"], []
    if kind == "cuda" and not torch.cuda.is_available():
        notes.append(f"it was computed on a GPU ({by['device']}); there is none here, so this is the CPU's answer")
        kind = "cpu"
    threads = by["threads"]
    dtype = Dtype(by["dtype"]) if by["dtype"] in DTYPES else settings.dtype
    by_torch = {"engine": EngineName.TORCH, "device": Device(kind), "dtype": dtype, "threads": 0}
    engine = SelectedEngine(settings.model_copy(update=by_torch))
    torch.set_num_threads(by["loaded_threads"])  # what all prompts begin with is read while loading
    model = engine.load(base, adapter)
    torch.set_num_threads(threads)
    here = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if kind == "cuda" else cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    notes += [
        f"{name}: {by[name]} then, {here[name]} here"
        for name in here
        if by[name] != here[name] and not (name == "device" and kind != by["kind"])
    ]
    return model, notes
