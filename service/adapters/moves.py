"""One move of the pointer inside a transaction: the conditions on it, where it may go, and everything it writes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import orjson
import structlog
from sqlalchemy.engine import Connection

from service.adapters import repository, states
from service.adapters.integrity import require_adapter
from service.adapters.repository import ActivationRow, Pointer
from service.adapters.states import Action, AdapterState
from service.audit import repository as audit
from service.errors import Conflict, PreconditionFailed
from service.kit.clock import Clock
from service.kit.keys import redacted
from service.trials.ending import settle

log = structlog.get_logger(__name__)

BASE_TARGET = "base"
"""`to_version` of a rollback to the base without an adapter."""


@dataclass(frozen=True, slots=True)
class Activation:
    """What a move of the pointer did. None as a version: the base without an adapter."""

    from_version: str | None
    to_version: str | None
    revision: int
    audit_id: str


@dataclass(frozen=True, slots=True)
class MoveRequest:
    """Who asks for a move, and on what condition.

    expected_revision: the pointer must still be at it (If-Match). idempotency_key: the same request with the same key
    is answered again with what it did the first time.
    """

    actor: str
    reason: str | None = None
    expected_revision: int | None = None
    idempotency_key: str | None = None


def fingerprint(asked: Sequence[object], request: MoveRequest) -> str:
    """What makes two requests the same one: who asks for what (such as an action and a version), on which condition."""
    parts = [*asked, request.actor, request.reason, request.expected_revision]
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()


def replay(connection: Connection, request: MoveRequest, fingerprint: str) -> Activation | None:
    """What the request did when it was made before. Raises Conflict when its key was another request's."""
    if request.idempotency_key is None:
        return None
    row = repository.find_activation(connection, request.idempotency_key)
    if row is None:
        return None
    if row.request_hash != fingerprint:
        raise Conflict("this Idempotency-Key was used for another request; send a new one")
    return Activation(row.from_version, row.to_version, row.revision, row.audit_id)


def begin(
    connection: Connection, request: MoveRequest, fingerprint: str, *, lock: bool = True
) -> tuple[Pointer, Activation | None]:
    """The pointer, and what the request did earlier if it is a repetition. Raises PreconditionFailed.

    Without `lock` the answer is a first look, to be taken again under the lock.
    """
    # In this order: a twin of this request that commits in between is then found by its key, not taken for a rival.
    pointer = repository.read_pointer(connection, lock=lock)
    if (earlier := replay(connection, request, fingerprint)) is None:
        check_revision(pointer, request)
    return pointer, earlier


def check_revision(pointer: Pointer, request: MoveRequest) -> None:
    if request.expected_revision is not None and request.expected_revision != pointer.revision:
        raise PreconditionFailed(
            f"the revision is {pointer.revision}, not {request.expected_revision}; read it again and decide anew"
        )


def check_target(connection: Connection, version: str, base_id: str, from_states: frozenset[AdapterState]) -> None:
    """Raises NotFound or Conflict unless `version` may become active under `base_id`."""
    adapter = require_adapter(connection, version)
    if adapter.base_id != base_id:
        raise Conflict(f"adapter {version} was made for base {adapter.base_id}; {base_id} is active")
    if adapter.state is AdapterState.COLLECTED:
        raise Conflict(f"adapter {version} was removed by garbage collection; only what is still there can serve")
    if adapter.state is AdapterState.ACTIVE:
        raise Conflict(f"adapter {version} is active already")
    if adapter.state not in from_states:
        wanted = ", ".join(sorted(from_states))
        raise Conflict(f"adapter {version} is {adapter.state}; only {wanted} adapters can be made active here")


def rollback_target(connection: Connection, pointer: Pointer, to_version: str | None) -> str | None:
    """The version to go back to, None for the base alone. Raises NotFound or Conflict when there is none."""
    if pointer.base_id is None:
        raise Conflict("no base is active, so there is nothing to roll back")
    if to_version == BASE_TARGET:
        if pointer.adapter_version is None:
            raise Conflict("the base already serves without an adapter")
        return None
    if to_version is not None:
        check_target(connection, to_version, pointer.base_id, states.RESTORABLE)
        return to_version
    moves = repository.activations_of_base(connection, pointer.base_id)
    state = repository.states_of(connection, pointer.base_id)
    found, target = states.previous(
        states.served_stack([states.Move(row.action, row.to_version) for row in moves]),
        lambda version: state[version] in states.RESTORABLE,
    )
    if not found:
        raise Conflict('nothing was active before; to serve the base alone, roll back to_version "base"')
    return target


def move(
    connection: Connection,
    clock: Clock,
    pointer: Pointer,
    base_id: str,
    to_version: str | None,
    action: Action,
    request: MoveRequest,
    window_id: int | None = None,
    fingerprint: str | None = None,
) -> Activation:
    """Move the locked pointer, change both adapters' states, write history and audit log."""
    request = replace(request, reason=redacted(request.reason)) if request.reason else request
    left, revision, now = pointer.adapter_version, pointer.revision + 1, clock()
    if left is not None and left != to_version:
        adapter = require_adapter(connection, left)
        if adapter.state is AdapterState.ACTIVE:  # a corrupt one stays marked
            repository.set_state(connection, left, AdapterState.RETIRED)
    if to_version is not None and left != to_version:
        repository.set_state(connection, to_version, AdapterState.ACTIVE)
    moved = Pointer(revision, base_id, to_version)
    repository.write_pointer(connection, moved)
    details = {"from_version": left, "to_version": to_version, "base_id": base_id, "revision": revision}
    audit_id = audit.append(
        connection,
        now=now,
        actor=request.actor,
        action=f"adapter.{action.value}",
        subject=to_version or base_id,
        details={**details, "window_id": window_id, "reason": request.reason},
    )
    row = ActivationRow(
        audit_id=audit_id,
        revision=revision,
        action=action,
        base_id=base_id,
        from_version=left,
        to_version=to_version,
        window_id=window_id,
        actor=request.actor,
        reason=request.reason,
        idempotency_key=request.idempotency_key,
        request_hash=fingerprint if request.idempotency_key is not None else None,
        created_at=now,
    )
    repository.insert_activation(connection, row)
    settle(connection, clock, moved, actor=request.actor)
    log.info("pointer_moved", action=action.value, from_version=left, to_version=to_version, revision=revision)
    return Activation(left, to_version, revision, audit_id)
