"""What the pages of adapters show: the list, the lineage, one adapter's evidence and its movement."""

from dataclasses import dataclass

from service.adapters import repository
from service.adapters import service as adapters
from service.adapters.artifacts import ADAPTERS, ArtifactStore, VerifiedAdapter
from service.adapters.integrity import require_base
from service.adapters.lora import Dimensions
from service.adapters.movement import Movement, Update, measure
from service.adapters.repository import Adapter, Base
from service.adapters.service import AdapterDetail, Registry
from service.adapters.states import GONE
from service.dashboard.lineage import Lineage, draw
from service.dashboard.service import beside_windows
from service.dashboard.window_words import Beside
from service.errors import ArtifactError, NotFound
from service.kit.db import Database
from service.settings import Settings
from service.trials import repository as trials
from service.trials.repository import TrialRow
from service.trials.states import Trial
from service.windows import repository as windows
from service.windows.schemas import WindowView

PAGE = 25
DRAWN = 60
MOST_BYTES = 128 * 2**20
"""Of an adapter and of its parent; a larger one's movement is not measured here."""


@dataclass(frozen=True, slots=True)
class AdapterList:
    """A page of the registry, and on the first one the lineage of the active base (None: no base yet)."""

    registry: Registry
    lineage: Lineage | None
    trial: Trial | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of an adapter without opening it. window: whose events it was trained on, None for no window;
    beside: what is known beside it. tried: the latest row of its trial, None for one never on trial."""

    detail: AdapterDetail
    base: Base
    parent: Adapter | None
    window: WindowView | None
    beside: Beside
    tried: TrialRow | None
    movable: bool
    """Whether its files are there to be measured and loaded."""
    comparable: bool
    """Whether it can be loaded beside what the pointer names, and is something else."""


@dataclass(frozen=True, slots=True)
class Measured:
    """signature: what is known of it. parent_gone: why the base is compared with in place of the parent."""

    movement: Movement
    rank: int
    signature: str
    parent_gone: str | None


def read_list(database: Database, before: str | None) -> AdapterList:
    """Raises StoreUnavailable."""
    with database.read() as connection:
        registry = adapters.read_registry_in(connection, limit=PAGE, before=before)
        latest = trials.latest(connection)
        trial, pointer = None if latest is None else latest.trial, registry.pointer
        if pointer.base_id is None or before is not None:
            return AdapterList(registry, None, trial)
        found = repository.newest_of_base(connection, pointer.base_id, DRAWN + 1)
        moves = repository.activations_of_base(connection, pointer.base_id)
    lineage = draw(found[:DRAWN], moves, pointer.adapter_version, older=len(found) > DRAWN)
    return AdapterList(registry, lineage, trial)


def read_evidence(database: Database, settings: Settings, version: str) -> Evidence:
    """Raises NotFound, StoreUnavailable."""
    detail = adapters.read_adapter(database, version)
    adapter = detail.adapter
    with database.read() as connection:
        active_base = repository.read_pointer(connection).base_id
        base = require_base(connection, adapter.base_id)
        parent = repository.find_adapter(connection, adapter.parent_version) if adapter.parent_version else None
        window = windows.find(connection, adapter.window_id) if adapter.window_id is not None else None
        beside = beside_windows(connection, settings, [window] if window else [])
        tried = trials.latest_of(connection, [version]).get(version)
    movable = adapter.state not in GONE and base.collected_at is None
    comparable = movable and not detail.active and adapter.base_id == active_base
    view = WindowView.of(window, settings) if window else None
    return Evidence(detail, base, parent, view, beside, tried, movable, comparable)


def measure_adapter(artifacts: ArtifactStore, evidence: Evidence) -> Measured:
    """Read, verify and measure an adapter against its parent, or its base. Raises ArtifactError."""
    adapter, base, parent = evidence.detail.adapter, evidence.base, evidence.parent
    dimensions = artifacts.read_dimensions(base.base_id, base.digest)
    own = _open(artifacts, adapter, dimensions)
    gone = None
    before: Update | None = None
    if adapter.parent_version is not None:
        try:
            if parent is None:
                raise NotFound(f"adapter {adapter.parent_version} is not registered")
            opened = _open(artifacts, parent, dimensions)
            before = Update.of(opened.config, opened.tensors)
            if before.idle:
                gone = f"adapter {adapter.parent_version} leaves the base as it is"
        except (ArtifactError, NotFound) as error:
            gone = error.detail
    signature = (
        "signed by a key that is accepted here"
        if artifacts.keys.set
        else "not checked: no key to check signatures with is set here"
    )
    movement = measure(Update.of(own.config, own.tensors), before, dimensions)
    return Measured(movement, own.config["r"], signature, gone)


def _open(artifacts: ArtifactStore, adapter: Adapter, dimensions: Dimensions) -> VerifiedAdapter:
    size, _ = artifacts.measure(ADAPTERS, adapter.adapter_version)
    if size > MOST_BYTES:
        raise ArtifactError(
            f"adapter {adapter.adapter_version} has {size / 2**20:.0f} MiB; the movement of at most "
            f"{MOST_BYTES // 2**20} MiB is measured here"
        )
    return artifacts.verify_adapter(adapter.adapter_version, adapter.digest, adapter.base_id, dimensions)
