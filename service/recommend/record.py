"""Recommendations are stored before their replies are sent; those that are ready together share one commit.

Their commits wait for no disk (docs/decisions/0024): an acknowledged event is flushed behind the recommendation that it
names.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from sqlalchemy.engine import Connection

from service.kit.db import Database
from service.kit.grouped import Grouped
from service.recommend import repository
from service.users import repository as users

WRITTEN_TOGETHER = 128
AGAIN_S = 1.0  # after a record that was waited for in vain, until the next one that is

log = structlog.get_logger(__name__)


class Recorded:
    """Waits for records on the event loop; one that comes too late spares those after it the wait.

    From then on one in a while is waited for, until one is in time, and the others are stored when they can be. Nobody
    else may have found out that the store hangs: a past can come from a cache, and SQLite reads beside a writer that
    keeps its file locked.
    """

    def __init__(self, wait_s: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wait_s, self._monotonic = wait_s, monotonic
        self._unwaited_until: float | None = None

    async def wait(self, recorded: "asyncio.Future[None]") -> None:
        """Raises what the record raises, and TimeoutError, which cancels it."""
        now = self._monotonic()
        if self._unwaited_until is not None:
            if now < self._unwaited_until:
                recorded.add_done_callback(_heard)
                return
            self._unwaited_until = now + self._wait_s + AGAIN_S  # this one finds out for all
        try:
            async with asyncio.timeout(self._wait_s):
                await recorded
            self._unwaited_until = None
        except TimeoutError:
            self._unwaited_until = self._monotonic() + AGAIN_S
            raise


def _heard(recorded: "asyncio.Future[None]") -> None:
    """A failure that nobody waits for is no defect."""
    if not recorded.cancelled() and (error := recorded.exception()) is not None:
        log.warning("recommendation_not_stored", error=str(error) or type(error).__name__)


def recommendation_writer(database: Database) -> Grouped[Mapping[str, Any], None]:
    """Inserts rows of `recommendations`; a row's future has its result once it is committed.

    A row's `settings` (RecordedSettings) are stored with the first row that has them, and named by the others.
    """

    known: set[str] = set()

    def write(rows: Sequence[Mapping[str, Any]]) -> list[None]:
        used = {own.id: own for row in rows if (own := row.get("settings")) is not None and own.id not in known}
        with database.write(flushed=False) as connection:
            repository.keep_settings(connection, used.values(), now=max(row["created_at"] for row in rows))
            repository.insert(connection, [_columns(row) for row in rows])
            _withdraw(connection, rows)
        known.update(used)
        return [None] * len(rows)

    return Grouped("recommendation-writer", write, most=WRITTEN_TOGETHER, max_queued=8 * WRITTEN_TOGETHER)


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """settings: a RecordedSettings, or None where the row names them itself."""
    settings = row.get("settings")
    own = {"request": None, "computed": None, "settings_id": None if settings is None else settings.id}
    return own | {name: value for name, value in row.items() if name != "settings"}


def _withdraw(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Not those of users who were erased while their recommendation was on its way: they hold what was erased."""
    named = [row for row in rows if row["user_id"] is not None]
    if not named:
        return
    until = users.unsettled(connection, [row["user_id"] for row in named], min(row["created_at"] for row in named))
    if gone := [
        r["recommendation_id"] for r in named if r["user_id"] in until and r["created_at"] <= until[r["user_id"]]
    ]:
        repository.delete(connection, gone)
