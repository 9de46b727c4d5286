"""The updater's look at live quality: count what is due, show it, roll back if need be. Beside the updates."""

import structlog

from service.adapters.artifacts import ArtifactStore
from service.adapters.bus import Announce, Change, nobody
from service.errors import AdaptideError
from service.kit.clock import Clock
from service.kit.db import Database
from service.kit.lease_keeper import held
from service.quality import candidates, folding, gauges, monitor, repository
from service.quality.folding import QUALITY_LEASE
from service.settings import Settings

log = structlog.get_logger(__name__)


class QualityWatch:
    """One process's; only the holder of the lease works. `tell`: of a rollback, and of a canary that was ended."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        settings: Settings,
        artifacts: ArtifactStore,
        owner: str,
        tell: Announce = nobody,
    ) -> None:
        self._database, self._clock, self._settings = database, clock, settings
        self._artifacts, self._owner, self._tell = artifacts, owner, tell
        self._looked = False

    def look(self) -> None:
        """Do what is due. Never raises: whatever is in the way is logged, and tried again the next time."""
        try:
            self._look()
        except AdaptideError as error:
            log.warning("quality_not_counted", reason=error.detail)

    def _look(self) -> None:
        database, clock, settings = self._database, self._clock, self._settings
        if settings.quality_horizon is None:
            return
        # Without the lease: asking for one writes to the store, and as a rule nothing is due.
        if self._looked and folding.due(database, clock(), settings) is None:
            return
        self._looked = False  # until all of it is done: what is counted is not due again
        with held(database, QUALITY_LEASE, self._owner, settings.lease_duration) as lease:
            if lease is None:
                return
            folding.fold(database, clock, settings, lease)
            folding.forget(database, clock, settings)
            self._show()
            if monitor.act(database, clock, settings, self._artifacts, lease) is not None:
                self._tell(Change.POINTER)
            elif candidates.refuse(database, clock, settings, lease) is not None:
                self._tell(Change.TRIAL)
        self._looked = True

    def _show(self) -> None:
        horizon = self._settings.quality_horizon
        assert horizon is not None  # noqa: S101  # asked by _look
        with self._database.read() as connection:
            watched = monitor.watch(connection)
            since = min((one.since for one in watched.before[:1]), default=watched.since)
            # It may have begun to serve within a bucket.
            after = None if since is None else since - self._settings.quality_bucket
            found = [] if after is None else repository.buckets(connection, horizon, since=after)
            through = repository.counted_through(connection)
        gauges.show(watched, found, through)
