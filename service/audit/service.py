"""Reading the audit log, and what was refused in it."""

import threading
import time
from collections import Counter

import structlog

from service.audit import repository
from service.audit.schemas import AuditEntry, AuditPage
from service.errors import AdaptideError, StoreUnavailable
from service.kit.clock import Clock
from service.kit.db import Database
from service.kit.rates import Rates

REFUSALS_PER_SECOND, REFUSALS_AT_ONCE = 1 / 60, 20
"""Of one key; the next row says how many more there were. Nobody may fill the log, which cannot be pruned."""

log = structlog.get_logger(__name__)


class Refusals:
    """Safe to share between threads."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock
        self._rates, self._lock = Rates(REFUSALS_PER_SECOND, REFUSALS_AT_ONCE), threading.Lock()
        self._unrecorded: Counter[str] = Counter()  # by actor: keys that an admin made, so there are not many

    def record(self, actor: str, route: str, subject: str | None, error: AdaptideError) -> None:
        """Write that `actor` was refused an admin deed. A store that is away does not change the reply."""
        with self._lock:
            if self._rates.take(actor, time.monotonic()) > 0:
                self._unrecorded[actor] += 1
                return
            more = self._unrecorded.pop(actor, 0)
        details = {"route": route, "status": error.status, "slug": error.slug} | ({"more_before": more} if more else {})
        try:
            with self._database.write() as connection:
                repository.append(
                    connection,
                    now=self._clock(),
                    actor=actor,
                    action="admin.refused",
                    subject=subject,
                    details=details,
                )
        except StoreUnavailable as unavailable:
            with self._lock:
                self._unrecorded[actor] += more + 1
            log.warning("refusal_not_recorded", detail=unavailable.detail)


def read_page(database: Database, *, limit: int, before: str | None) -> AuditPage:
    """Entries newest first; `before` is the previous page's next_before."""
    with database.read() as connection:
        rows = repository.page(connection, limit=limit + 1, before=before)
    entries = [AuditEntry.model_validate(row) for row in rows[:limit]]
    return AuditPage(entries=entries, next_before=entries[-1].audit_id if len(rows) > limit else None)
