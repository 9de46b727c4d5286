"""SQL of the audit log. It only grows: the store itself refuses update and delete."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from service.audit.tables import audit_log
from service.kit.ids import uuid7


def append(
    connection: Connection,
    *,
    now: datetime,
    actor: str,
    action: str,
    subject: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> str:
    """Add an entry inside the transaction whose deed it records; returns its audit_id.

    `actor`: key:<key_id>, cli or updater. `action`: thing.verb. `details` must hold no personal data and no secrets:
    it cannot be erased.
    """
    audit_id = uuid7()
    connection.execute(
        audit_log.insert().values(
            audit_id=audit_id,
            created_at=now,
            actor=actor,
            action=action,
            subject=subject,
            details=dict(details) if details is not None else None,
        )
    )
    return audit_id


def page(connection: Connection, *, limit: int, before: str | None) -> list[Mapping[str, Any]]:
    """Up to `limit` entries older than the entry `before`, newest first (an audit_id sorts by time)."""
    query = sa.select(audit_log).order_by(audit_log.c.audit_id.desc()).limit(limit)
    if before is not None:
        query = query.where(audit_log.c.audit_id < before)
    return [dict(row) for row in connection.execute(query).mappings()]
