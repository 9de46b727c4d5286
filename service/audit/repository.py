"""SQL of the audit log. It only grows: the store itself refuses update and delete."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection

from service.audit.tables import audit_log
from service.kit.ids import uuid7
from service.kit.keys import redacted


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

    It names the request that is being answered here, by the identifier that the log has too.
    `actor`: key:<key_id>, or a part's name. `action`: thing.verb. `details` must hold no personal data and no secrets:
    it cannot be erased.
    """
    audit_id = uuid7()
    connection.execute(
        audit_log.insert().values(
            audit_id=audit_id,
            created_at=now,
            actor=actor,
            action=action,
            subject=None if subject is None else redacted(subject),
            details=None if details is None else {name: _redacted(value) for name, value in details.items()},
            request_id=structlog.contextvars.get_contextvars().get("request_id"),
        )
    )
    return audit_id


def _redacted(value: Any) -> Any:
    return redacted(value) if isinstance(value, str) else value


def page(connection: Connection, *, limit: int, before: str | None) -> list[Mapping[str, Any]]:
    """Up to `limit` entries older than the entry `before`, newest first (an audit_id sorts by time)."""
    query = sa.select(audit_log).order_by(audit_log.c.audit_id.desc()).limit(limit)
    if before is not None:
        query = query.where(audit_log.c.audit_id < before)
    return [dict(row) for row in connection.execute(query).mappings()]


def about(connection: Connection, subjects: Collection[str]) -> list[Mapping[str, Any]]:
    """Every entry with one of these subjects, oldest first."""
    query = sa.select(audit_log).where(audit_log.c.subject.in_(subjects)).order_by(audit_log.c.audit_id)
    return [dict(row) for row in connection.execute(query).mappings()]
