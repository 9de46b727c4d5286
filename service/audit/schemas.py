"""The audit log as it is sent."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel


class AuditEntry(BaseModel):
    audit_id: str
    created_at: datetime
    actor: str
    action: str
    subject: str | None
    details: dict[str, Any] | None
    request_id: str | None
    """X-Request-ID of the request that did it; null for commands and the updater."""


class AuditPage(BaseModel):
    entries: list[AuditEntry]
    next_before: str | None
    """Send it as `before` for the next, older page; null on the last."""
