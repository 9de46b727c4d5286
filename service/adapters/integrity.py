"""Whether an adapter's folder still is what was registered, and what is noted when it is not."""

from dataclasses import replace

import structlog
from sqlalchemy.engine import Connection

from service.adapters import repository, states
from service.adapters.artifacts import ArtifactStore
from service.adapters.repository import Adapter, Base, Pointer, read_pointer
from service.adapters.states import AdapterState
from service.audit import repository as audit
from service.errors import ArtifactError, ArtifactMissing, ArtifactUntrusted, Conflict, NotFound
from service.kit.clock import Clock
from service.kit.db import Database
from service.trials.ending import settle

log = structlog.get_logger(__name__)


def verify(database: Database, clock: Clock, artifacts: ArtifactStore, version: str, *, actor: str) -> Adapter:
    """Read every byte of an adapter's folder and compare it with what was registered.

    An adapter that is not what was published is marked corrupt; one that was marked and is whole again is readmitted.
    Raises NotFound, and Conflict when it fails. A folder that is not there, a damaged base or a signature that does not
    count here marks nothing: the folder may only be out of reach, the adapter is not to blame for its base, and the
    keys may be wrong in this process alone.
    """
    with database.read() as connection:
        adapter = require_adapter(connection, version)
        base = require_base(connection, adapter.base_id)
    if adapter.state is AdapterState.COLLECTED:
        raise Conflict(f"adapter {version} was removed by garbage collection; only what is still there can serve")
    try:
        dimensions = artifacts.read_dimensions(base.base_id, base.digest)
    except ArtifactError as error:
        raise Conflict(error.detail) from error
    try:
        artifacts.verify_adapter(version, adapter.digest, base.base_id, dimensions)
    except (ArtifactMissing, ArtifactUntrusted) as error:
        raise Conflict(error.detail) from error
    except ArtifactError as error:
        mark_corrupt(database, clock, version, error.detail, actor=actor)
        raise Conflict(
            f"{error.detail}; it is not served. Restore its folder from a backup and run: "
            f"adaptide adapters verify {version}"
        ) from error
    if adapter.state is AdapterState.CORRUPT:
        return _readmit(database, clock, version, actor)
    return adapter


def verify_with_base(
    database: Database, clock: Clock, artifacts: ArtifactStore, version: str | None, *, actor: str
) -> Pointer:
    """Verify an adapter (None: the active one) and every byte of its base; returns what was verified.

    Raises as `verify` does, Conflict also when nothing is active.
    """
    with database.read() as connection:
        pointer = read_pointer(connection)
        version = pointer.adapter_version if version is None else version
        base_id = pointer.base_id if version is None else require_adapter(connection, version).base_id
        if base_id is None:
            raise Conflict("no base is active, so there is nothing to verify; build one: adaptide base build")
        base = require_base(connection, base_id)
    try:
        artifacts.open_base(base.base_id, base.digest)
    except ArtifactError as error:
        raise Conflict(error.detail) from error
    if version is not None:
        verify(database, clock, artifacts, version, actor=actor)
    return Pointer(pointer.revision, base_id, version)


def mark_corrupt(database: Database, clock: Clock, version: str, reason: str, *, actor: str) -> None:
    """Note that an adapter's folder is damaged; noting it again, or of a refused one, changes nothing."""
    with database.write() as connection:
        pointer = repository.read_pointer(connection, lock=True)  # a move that has seen the old state is waited for
        adapter = repository.find_adapter(connection, version)
        if adapter is None or not states.allowed(adapter.state, AdapterState.CORRUPT):
            return
        repository.set_state(connection, version, AdapterState.CORRUPT)
        audit.append(
            connection,
            now=clock(),
            actor=actor,
            action="adapter.corrupt",
            subject=version,
            details={"reason": reason[:500], "was": adapter.state.value},
        )
        settle(connection, clock, pointer, actor=actor)
    log.error("adapter_marked_corrupt", adapter_version=version, reason=reason)


def _readmit(database: Database, clock: Clock, version: str, actor: str) -> Adapter:
    with database.write() as connection:
        pointer = repository.read_pointer(connection, lock=True)
        adapter = repository.find_adapter(connection, version)
        assert adapter is not None  # noqa: S101  # adapters are never deleted
        if adapter.state is not AdapterState.CORRUPT:
            return adapter
        state = AdapterState.ACTIVE if pointer.adapter_version == version else AdapterState.CANDIDATE
        repository.set_state(connection, version, state)
        audit.append(
            connection,
            now=clock(),
            actor=actor,
            action="adapter.readmit",
            subject=version,
            details={"now": state.value},
        )
    log.info("adapter_readmitted", adapter_version=version, state=state)
    return replace(adapter, state=state)


def require_base(connection: Connection, base_id: str) -> Base:
    """Raises NotFound."""
    base = repository.find_base(connection, base_id)
    if base is None:
        raise NotFound(f"base {base_id!r} is not registered; build it with: adaptide base build")
    return base


def require_adapter(connection: Connection, version: str) -> Adapter:
    adapter = repository.find_adapter(connection, version)
    if adapter is None:
        raise NotFound(f"adapter {version!r} is not registered; see: adaptide adapters list")
    return adapter
