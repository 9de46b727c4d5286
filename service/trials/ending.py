"""A trial ends in the same transaction as what makes it impossible. Whoever calls holds the pointer's lock."""

from dataclasses import replace

import structlog
from sqlalchemy.engine import Connection

from service.adapters import repository as adapters
from service.adapters.repository import Pointer
from service.audit import repository as audit
from service.kit.clock import Clock
from service.trials import repository, states
from service.trials.repository import TrialRow
from service.trials.states import Deed, EndReason

log = structlog.get_logger(__name__)


def settle(connection: Connection, clock: Clock, pointer: Pointer, *, actor: str) -> EndReason | None:
    """End the trial if it cannot go on beside this pointer; why it ended, None when it goes on or there is none."""
    latest = repository.latest(connection)
    if latest is None or (trial := latest.trial) is None:
        return None
    candidate = adapters.find_adapter(connection, trial.adapter_version)
    assert candidate is not None  # noqa: S101  # foreign keys
    because = states.over(trial, pointer, candidate.state, clock())
    if because is not None:
        end = replace(latest, deed=Deed.END, because=because, reason=None, idempotency_key=None, request_hash=None)
        append(connection, clock, replace(end, revision=latest.revision + 1, actor=actor))
    return because


def append(connection: Connection, clock: Clock, row: TrialRow) -> TrialRow:
    """Write the row, with its moment, and its entry in the audit log; returns it as it was written."""
    now = clock()
    details = {
        "revision": row.revision,
        "kind": row.kind.value,
        "share": row.share,
        "base_id": row.base_id,
        "ends_at": None if row.ends_at is None else row.ends_at.isoformat(),
        "because": None if row.because is None else row.because.value,
        "reason": row.reason,
    }
    audit_id = audit.append(
        connection,
        now=now,
        actor=row.actor,
        action=f"trial.{row.deed.value}",
        subject=row.adapter_version,
        details=details,
    )
    row = replace(row, audit_id=audit_id, created_at=now)
    repository.insert(connection, row)
    log.info("trial_moved", deed=row.deed.value, adapter_version=row.adapter_version, revision=row.revision)
    return row
