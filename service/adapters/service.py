"""Registering adapters and moving the one pointer that says which of them serves.

Every change is one transaction that locks the pointer first, so promotions and rollbacks happen one after the other,
each with its revision, its row in the activations and its row in the audit log (both carry the same audit_id).
"""

from dataclasses import dataclass

from sqlalchemy.engine import Connection

from service.adapters import moves, repository, states
from service.adapters.artifacts import ArtifactStore
from service.adapters.integrity import require_adapter, require_base, verify
from service.adapters.moves import Activation, MoveRequest
from service.adapters.repository import ActivationRow, Adapter, NewAdapter, NewBase, Pointer
from service.adapters.states import Action, AdapterState
from service.errors import Conflict
from service.kit.clock import Clock
from service.kit.db import Database


@dataclass(frozen=True, slots=True)
class Registry:
    """A page of adapters, newest first, beside the pointer they were read with."""

    pointer: Pointer
    adapters: list[Adapter]
    next_before: str | None


@dataclass(frozen=True, slots=True)
class AdapterDetail:
    """One adapter with the moves it took part in (newest first, 50 at most)."""

    adapter: Adapter
    active: bool
    revision: int
    history: list[ActivationRow]


def read_registry(database: Database, *, limit: int = 100, before: str | None = None) -> Registry:
    with database.read() as connection:
        return read_registry_in(connection, limit=limit, before=before)


def read_registry_in(connection: Connection, *, limit: int, before: str | None = None) -> Registry:
    """See read_registry; inside the caller's transaction."""
    # First: a revision that is shown must not be newer than what it is shown with, or If-Match lets that pass.
    pointer = repository.read_pointer(connection)
    found = repository.list_adapters(connection, limit=limit + 1, before=before)
    shown = found[:limit]
    return Registry(pointer, shown, shown[-1].adapter_version if len(found) > limit else None)


def read_adapter(database: Database, version: str) -> AdapterDetail:
    """Raises NotFound."""
    with database.read() as connection:
        pointer = repository.read_pointer(connection)  # first, as in read_registry
        adapter = require_adapter(connection, version)
        history = repository.activations_of_version(connection, version, limit=50)
    return AdapterDetail(adapter, pointer.adapter_version == version, pointer.revision, list(history))


def register_base(database: Database, clock: Clock, base: NewBase) -> None:
    """Record a published base; recording the same one again changes nothing. Raises Conflict for another digest."""
    with database.write() as connection:
        register_base_in(connection, clock, base)


def register_base_in(connection: Connection, clock: Clock, base: NewBase) -> None:
    """See register_base; inside the caller's transaction."""
    known = repository.find_base(connection, base.base_id)
    if known is None:
        repository.insert_base(connection, base, clock())
    elif known.digest != base.digest:
        raise Conflict(f"base {base.base_id} is registered with another digest")
    elif known.collected_at is not None:
        raise Conflict(
            f"base {base.base_id} was removed by garbage collection and cannot come back under this name; "
            "build another: set ADAPTIDE_SEED to a new number"
        )


def activate_base(
    database: Database, clock: Clock, base_id: str, *, actor: str, adapter_version: str | None = None
) -> Activation:
    """Serve a base, alone or with an adapter of its own. Adapters of the base before it can no longer be active.

    Raises NotFound for an unknown base or adapter, Conflict when the adapter is another base's or may not serve.
    """
    with database.write() as connection:
        return activate_base_in(connection, clock, base_id, actor=actor, adapter_version=adapter_version)


def activate_base_in(
    connection: Connection, clock: Clock, base_id: str, *, actor: str, adapter_version: str | None = None
) -> Activation:
    """See activate_base; inside the caller's transaction."""
    pointer = repository.read_pointer(connection, lock=True)
    if require_base(connection, base_id).collected_at is not None:
        raise Conflict(f"base {base_id} was removed by garbage collection; build another: adaptide base build")
    if adapter_version is not None and (base_id, adapter_version) != (pointer.base_id, pointer.adapter_version):
        moves.check_target(connection, adapter_version, base_id, states.PROMOTABLE)
    return moves.move(connection, clock, pointer, base_id, adapter_version, Action.BASE, MoveRequest(actor))


def register_adapter(
    database: Database, clock: Clock, adapter: NewAdapter, state: AdapterState = AdapterState.CANDIDATE
) -> None:
    """Record a published adapter. Raises NotFound for an unknown base, Conflict for a known version."""
    with database.write() as connection:
        register_adapter_in(connection, clock, adapter, state)


def register_adapter_in(connection: Connection, clock: Clock, adapter: NewAdapter, state: AdapterState) -> None:
    """See register_adapter; inside the caller's transaction."""
    if state not in states.INITIAL:
        raise Conflict(f"an adapter cannot be registered as {state}")
    require_base(connection, adapter.base_id)
    if repository.find_adapter(connection, adapter.adapter_version) is not None:
        raise Conflict(f"adapter {adapter.adapter_version} is registered already")
    repository.insert_adapter(connection, adapter, state, clock())


def promote(
    database: Database, clock: Clock, artifacts: ArtifactStore, version: str, request: MoveRequest
) -> Activation:
    """Verify an adapter and make it the active one.

    Raises NotFound, PreconditionFailed (the revision moved on), Conflict: refused by the gate, corrupt, of another
    base, active already, or an idempotency key that was used for another request.
    """
    fingerprint = moves.fingerprint([Action.PROMOTE, version], request)
    with database.read() as connection:
        _, earlier = moves.begin(connection, request, fingerprint, lock=False)
    if earlier is not None:
        return earlier
    verify(database, clock, artifacts, version, actor=request.actor)
    with database.write() as connection:
        pointer, earlier = moves.begin(connection, request, fingerprint)
        if earlier is not None:
            return earlier
        return promote_in(connection, clock, pointer, version, request, fingerprint=fingerprint)


def promote_in(
    connection: Connection,
    clock: Clock,
    pointer: Pointer,
    version: str,
    request: MoveRequest,
    *,
    action: Action = Action.PROMOTE,
    window_id: int | None = None,
    fingerprint: str | None = None,
) -> Activation:
    """Move the locked `pointer` to a registered adapter of its base; inside the caller's transaction."""
    if pointer.base_id is None:
        raise Conflict("no base is active; build and activate one first: adaptide base build")
    moves.check_target(connection, version, pointer.base_id, states.PROMOTABLE)
    return moves.move(connection, clock, pointer, pointer.base_id, version, action, request, window_id, fingerprint)


def rollback(
    database: Database, clock: Clock, artifacts: ArtifactStore, request: MoveRequest, to_version: str | None = None
) -> Activation:
    """Go back to what was active before, to `to_version`, or to the base alone (`to_version` "base").

    See states.served_stack for what "before" means: going back repeatedly goes further back and never forth. Only
    adapters of the present base that have served or passed the gate can be gone back to. It stays until the next
    promotion, a passed window's included. Raises as `promote` does, Conflict when there is nothing to go back to.
    """
    fingerprint = moves.fingerprint([Action.ROLLBACK, to_version], request)
    while True:
        with database.write() as connection:  # locked: a twin of this request in between would leave no target
            pointer, earlier = moves.begin(connection, request, fingerprint)
            if earlier is not None:
                return earlier
            target = moves.rollback_target(connection, pointer, to_version)
        if target is not None:
            try:
                verify(database, clock, artifacts, target, actor=request.actor)
            except Conflict:
                if to_version is not None or not _is_corrupt(database, target):
                    raise
                continue  # it was marked just now: go back one further
        with database.write() as connection:
            pointer, earlier = moves.begin(connection, request, fingerprint)
            if earlier is not None:
                return earlier
            if moves.rollback_target(connection, pointer, to_version) != target:
                continue  # the pointer moved while the files were read: verify what is "before" now
            assert pointer.base_id is not None  # noqa: S101  # moves.rollback_target refuses without a base
            return moves.move(
                connection, clock, pointer, pointer.base_id, target, Action.ROLLBACK, request, None, fingerprint
            )


def _is_corrupt(database: Database, version: str) -> bool:
    with database.read() as connection:
        return require_adapter(connection, version).state is AdapterState.CORRUPT
