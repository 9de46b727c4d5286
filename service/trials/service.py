"""Starting, changing and ending the one trial. Each is a transaction that holds the pointer's lock, so a trial and the
active adapter never contradict each other."""

import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy.engine import Connection

from service.adapters import moves
from service.adapters import repository as adapters
from service.adapters.artifacts import ArtifactStore
from service.adapters.integrity import require_adapter, verify
from service.adapters.moves import MoveRequest
from service.adapters.repository import Pointer
from service.adapters.states import PROMOTABLE, AdapterState
from service.errors import Conflict, PreconditionFailed
from service.kit.clock import Clock
from service.kit.db import Database
from service.kit.keys import redacted
from service.trials import repository, states
from service.trials.ending import append, settle
from service.trials.repository import TrialRow
from service.trials.states import Deed, EndReason, Kind, Trial

HISTORY = 20
LONGEST = timedelta(days=366)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The trial that somebody asks for; ends_at None: it goes on until it is ended."""

    adapter_version: str
    kind: Kind
    share: float
    ends_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Trials:
    """The present trial, if any, its revision (0 before the first one), and the latest rows, newest first."""

    revision: int
    trial: Trial | None
    history: list[TrialRow]


def read(database: Database) -> Trials:
    with database.read() as connection:
        history = repository.history(connection, HISTORY)
    return Trials(history[0].revision if history else 0, history[0].trial if history else None, history)


def run(database: Database, clock: Clock, artifacts: ArtifactStore, wanted: Wanted, request: MoveRequest) -> TrialRow:
    """Start a trial, or change kind, share or end of the one that runs with the same candidate.

    Raises NotFound; PreconditionFailed; Conflict when another candidate is on trial, when this one cannot serve beside
    what is active or is damaged, its end has passed, or the idempotency key was used otherwise.
    """
    fingerprint = moves.fingerprint([wanted.adapter_version, wanted.kind, wanted.share, wanted.ends_at], request)
    with database.read() as connection:
        if (earlier := _begin(connection, request, fingerprint)[1]) is not None:
            return earlier
    if wanted.ends_at is not None:
        if wanted.ends_at <= clock():
            raise Conflict("the trial would have ended already; give a later moment, or none")
        if wanted.ends_at > clock() + LONGEST:
            raise Conflict(
                f"a trial lasts {LONGEST.days} days at most; give an earlier moment, or none to end it yourself"
            )
        wanted = replace(wanted, ends_at=wanted.ends_at.astimezone(UTC))
    verify(database, clock, artifacts, wanted.adapter_version, actor=request.actor)
    with database.write() as connection:
        pointer = adapters.read_pointer(connection, lock=True)
        latest, earlier = _begin(connection, request, fingerprint)
        return earlier or run_in(connection, clock, pointer, latest, wanted, request, fingerprint=fingerprint)


def run_in(
    connection: Connection,
    clock: Clock,
    pointer: Pointer,
    latest: TrialRow | None,
    wanted: Wanted,
    request: MoveRequest,
    *,
    fingerprint: str | None = None,
) -> TrialRow:
    """The same inside the caller's transaction, which holds the pointer; latest: the trials' latest row."""
    present = None if latest is None else latest.trial
    if present is not None and present.adapter_version != wanted.adapter_version:
        raise Conflict(f"adapter {present.adapter_version} is on trial; end that first: adaptide adapters trial --end")
    deed = states.deed(None if present is None else present.kind, wanted.kind)
    assert deed is not None  # noqa: S101  # every kind may follow on every kind
    candidate = require_adapter(connection, wanted.adapter_version)
    _check(candidate.adapter_version, candidate.base_id, candidate.state, pointer)
    row = TrialRow(
        audit_id="",
        revision=(latest.revision if latest else 0) + 1,
        deed=deed,
        adapter_version=candidate.adapter_version,
        base_id=candidate.base_id,
        kind=wanted.kind,
        share=wanted.share,
        salt=present.salt if present else secrets.token_hex(8),
        started_at=present.started_at if present else clock(),
        ends_at=wanted.ends_at,
        because=None,
        actor=request.actor,
        reason=redacted(request.reason) if request.reason else None,
        idempotency_key=request.idempotency_key,
        request_hash=fingerprint if request.idempotency_key is not None else None,
        created_at=clock(),
    )
    return append(connection, clock, row)


def end(database: Database, clock: Clock, request: MoveRequest, because: EndReason = EndReason.ASKED) -> TrialRow:
    """End the trial: control answers everybody. Raises Conflict when there is none, and as `run` does."""
    fingerprint = moves.fingerprint(["end", because], request)
    with database.write() as connection:
        adapters.read_pointer(connection, lock=True)
        latest, earlier = _begin(connection, request, fingerprint)
        if earlier is not None:
            return earlier
        if latest is None or latest.trial is None:
            raise Conflict("no adapter is on trial")
        return end_in(connection, clock, latest, because, request, fingerprint=fingerprint)


def end_in(
    connection: Connection,
    clock: Clock,
    latest: TrialRow,
    because: EndReason,
    request: MoveRequest,
    *,
    fingerprint: str | None = None,
) -> TrialRow:
    """End the trial that `latest` says is under way, inside the caller's transaction, which holds the pointer."""
    row = replace(
        latest,
        revision=latest.revision + 1,
        deed=Deed.END,
        because=because,
        actor=request.actor,
        reason=redacted(request.reason) if request.reason else None,
        idempotency_key=request.idempotency_key,
        request_hash=fingerprint if request.idempotency_key is not None else None,
    )
    return append(connection, clock, row)


def end_if_over(database: Database, clock: Clock) -> EndReason | None:
    """End the trial when it cannot go on; why. Every replica asks now and then, and the first one writes."""
    with database.write() as connection:
        pointer = adapters.read_pointer(connection, lock=True)
        return settle(connection, clock, pointer, actor="service")


def _check(version: str, base_id: str, state: AdapterState, pointer: Pointer) -> None:
    if pointer.base_id is None:
        raise Conflict("no base is active; build and activate one first: adaptide base build")
    if base_id != pointer.base_id:
        raise Conflict(f"adapter {version} was made for base {base_id}; {pointer.base_id} is active")
    if state is AdapterState.ACTIVE:
        raise Conflict(f"adapter {version} is active; only another one can be tried beside it")
    if state not in PROMOTABLE:
        raise Conflict(f"adapter {version} is {state}; only {', '.join(sorted(PROMOTABLE))} adapters can be tried")


def _begin(connection: Connection, request: MoveRequest, fingerprint: str) -> tuple[TrialRow | None, TrialRow | None]:
    """The latest row, and what the request did earlier if it is a repetition. Raises PreconditionFailed, Conflict."""
    latest = repository.latest(connection)
    key = request.idempotency_key
    if key is not None and (earlier := repository.find(connection, key)) is not None:
        if earlier.request_hash != fingerprint:
            raise Conflict("this Idempotency-Key was used for another request; send a new one")
        return latest, earlier
    revision = latest.revision if latest else 0
    if request.expected_revision is not None and request.expected_revision != revision:
        raise PreconditionFailed(
            f"the trial's revision is {revision}, not {request.expected_revision}; read it again and decide anew"
        )
    return latest, None
