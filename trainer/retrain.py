"""An adapter trained again from its window, to see whether the same weights come of it. Writes and promotes nothing."""

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from service.adapters import repository as adapters
from service.adapters.artifacts import ArtifactStore, VerifiedAdapter, VerifiedBase
from service.adapters.contents import METHOD_STATE, describe
from service.adapters.manifest import Kind
from service.catalog.index import CatalogueIndex
from service.catalog.past import index_at
from service.errors import ArtifactError, CatalogueError, ConfigurationError, NotFound
from service.generation.backbone import pick_device
from service.kit.db import Database
from service.settings import Device, Settings
from service.windows import repository as windows
from service.windows.repository import Window
from trainer import reproduce
from trainer.examples import Examples, build_examples
from trainer.language_model import load_trainable
from trainer.lora import save_adapter
from trainer.methods import make_method
from trainer.methods.base import Adapter
from trainer.processes import Together
from trainer.progress import Report, silent
from trainer.streams import load_streams
from trainer.together import adapting


@dataclass(slots=True)
class Retrained:
    """digest_then: of the registered manifest; digest_again: of what came of it now, None where nothing did.

    largest_difference: between any two weights, 0.0 when they are the same. impossible: why it was not tried.
    notes: what is not as it was then.
    """

    version: str
    digest_then: str
    digest_again: str | None = None
    identical: bool = False
    largest_difference: float | None = None
    impossible: str | None = None
    notes: list[str] = field(default_factory=list)


def retrain(
    database: Database, artifacts: ArtifactStore, settings: Settings, version: str, report: Report = silent
) -> Retrained:
    """Train an adapter's window again with what it was trained with.

    Raises NotFound for an unknown version, StoreUnavailable; whatever else is in the way is in the result.
    """
    with database.read() as connection:
        adapter = adapters.find_adapter(connection, version)
        if adapter is None:
            raise NotFound(f"adapter {version!r} is not registered; see: adaptide adapters list")
        window = None if adapter.window_id is None else windows.find(connection, adapter.window_id)
        base = adapters.find_base(connection, adapter.base_id)
        parent = adapters.find_adapter(connection, adapter.parent_version) if adapter.parent_version else None
    found = Retrained(version, adapter.digest)
    kept: Mapping[str, Any] | None = adapter.hyperparameters.get("reproduce")
    if window is None or base is None:
        found.impossible = "it was not trained on a window: it came with a base, or was registered by hand"
        return found
    if kept is None:
        found.impossible = "an earlier version of Adaptide trained it, which did not keep what is needed"
        return found
    try:
        settings = _machine_then(reproduce.settings_then(settings, kept["settings"]), kept["machine"], found)
        with database.read(patient=True) as connection:
            index = index_at(connection, kept["catalog_revision"], base.base_id)
        opened = artifacts.open_base(base.base_id, base.digest)
        then = artifacts.open_adapter(version, adapter.digest, opened)
        incumbent = None
        if parent is not None:
            before = artifacts.open_adapter(parent.adapter_version, parent.digest, opened)
            incumbent = Adapter.of(before.tensors, before.config, parent.method, artifacts.read_state(before))
        examples = _examples(database, settings, index, window)
    except (ArtifactError, CatalogueError, ConfigurationError) as error:
        found.impossible = error.detail
        return found
    if reproduce.data_digest(examples, index.codes, settings) != kept["data"]:
        found.impossible = (
            "what it was trained on is no longer all there: events were removed (retention, erasure of a user), of the "
            "window or of what its users did before"
        )
        return found
    again = _train(settings, opened, incumbent, examples, index, report)
    if again is None:
        found.notes.append("training found nothing better than the incumbent this time")
        return found
    found.digest_again = _digest(again, opened, then, settings)
    found.identical = found.digest_again == found.digest_then
    found.largest_difference = _apart(again, then.tensors)
    return found


def _machine_then(settings: Settings, machine: Mapping[str, Any], found: Retrained) -> Settings:
    """The settings for the device of then; notes what is another here."""
    kind = machine["kind"] if machine["kind"] != "cuda" or torch.cuda.is_available() else "cpu"
    torch.set_num_threads(machine["threads"])
    here = reproduce.machine(pick_device(kind))
    found.notes += [f"{name}: {machine[name]} then, {here[name]} here" for name in here if machine[name] != here[name]]
    return settings.model_copy(update={"device": Device(kind)})


def _examples(database: Database, settings: Settings, index: CatalogueIndex, window: Window) -> Examples:
    data = load_streams(database, settings, index, window.after_seq, window.through_seq)
    return build_examples(
        data.streams,
        history_items=settings.history_items,
        min_events=settings.min_events_per_user,
        user_share=settings.window_max_user_share,
        user_targets=settings.window_max_events_per_user,
        repeats=settings.window_max_repeats,
    )


def _train(
    settings: Settings,
    base: VerifiedBase,
    incumbent: Adapter | None,
    examples: Examples,
    index: CatalogueIndex,
    report: Report,
) -> Adapter | None:
    model = base.path / "model"
    backbone = load_trainable(model, pick_device(settings.device))
    train = adapting(Together.of(settings), model, None)
    candidate, _ = train(backbone, incumbent, make_method(settings), examples, index.codes, settings, report)
    return candidate


def _digest(again: Adapter, base: VerifiedBase, then: VerifiedAdapter, settings: Settings) -> str:
    """Of the manifest that these weights would be published under, beside the same metadata."""
    with tempfile.TemporaryDirectory(prefix="adaptide-") as folder:
        write_adapter(Path(folder), again, base, settings)
        return hashlib.sha256(describe(Path(folder), Kind.ADAPTER, then.metadata).encode()).hexdigest()


def write_adapter(folder: Path, adapter: Adapter, base: VerifiedBase, settings: Settings) -> None:
    """An adapter's files, as they are published. Raises OSError, SafetensorError."""
    save_adapter(
        folder,
        adapter.tensors,
        scale=adapter.scale,
        dropout=settings.lora_dropout,
        transposed=base.dimensions.transposed,
    )
    if adapter.state:
        save_file(dict(adapter.state), folder / METHOD_STATE)


def _apart(again: Adapter, then: Mapping[str, NDArray[Any]]) -> float | None:
    """None where they are not even of the same shapes."""
    if {name: tuple(own.shape) for name, own in again.tensors.items()} != {n: own.shape for n, own in then.items()}:
        return None
    return max(float((own - torch.from_numpy(then[name].copy())).abs().max()) for name, own in again.tensors.items())
