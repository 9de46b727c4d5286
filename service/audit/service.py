"""Reading the audit log."""

from service.audit import repository
from service.audit.schemas import AuditEntry, AuditPage
from service.kit.db import Database


def read_page(database: Database, *, limit: int, before: str | None) -> AuditPage:
    """Entries newest first; `before` is the previous page's next_before."""
    with database.read() as connection:
        rows = repository.page(connection, limit=limit + 1, before=before)
    entries = [AuditEntry.model_validate(row) for row in rows[:limit]]
    return AuditPage(entries=entries, next_before=entries[-1].audit_id if len(rows) > limit else None)
