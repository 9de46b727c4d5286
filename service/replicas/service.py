"""Each replica says every few seconds what it serves, so that an operator sees it and nothing it needs is deleted."""

import os
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timedelta

import structlog

from service.adapters.activation import ActivationStatus
from service.errors import AdaptideError
from service.kit.clock import Clock
from service.kit.db import Database
from service.kit.ids import uuid7
from service.kit.poller import Poller
from service.replicas import repository
from service.replicas.repository import Replica
from service.replicas.schemas import ReplicaView
from service.settings import Settings
from service.trials.following import TrialStatus

FORGOTTEN_AFTER = timedelta(hours=1)
"""A replica that has not been seen for so long is taken for gone, and its row is deleted by the next one."""
LATE_AFTER = 3
"""Heartbeats that may fail to come before a replica is shown as late."""
_FAREWELL_S = 2.0  # a store that does not answer must not hold up the end of the process

log = structlog.get_logger(__name__)


class Heartbeat:
    """Writes this process's row now and then; start() and stop() once each. A lost store is tried again."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        interval: timedelta,
        status: Callable[[], ActivationStatus],
        trial: Callable[[], TrialStatus] = TrialStatus,
    ) -> None:
        self._database, self._clock, self._status, self._trial = database, clock, status, trial
        self._poller = Poller("heartbeat", interval, self.beat)
        self._started_at: datetime | None = None
        self.replica_id = uuid7()

    def start(self) -> None:
        self._poller.start()

    def stop(self) -> None:
        """End, and take the row away if the store answers."""
        self._poller.stop(wait_s=_FAREWELL_S)
        farewell = threading.Thread(target=self._leave, name="heartbeat-farewell", daemon=True)
        farewell.start()
        farewell.join(_FAREWELL_S)

    def beat(self) -> None:
        """Write the row as of now, and delete those of replicas that are long gone. Raises StoreUnavailable."""
        now, status, trial = self._clock(), self._status(), self._trial()
        self._started_at = self._started_at or now
        wanted = (status.wanted_base_id, status.wanted_version)
        elsewhere = wanted != (status.base_id, status.adapter_version)
        replica = Replica(
            replica_id=self.replica_id,
            host=socket.gethostname()[:255],
            process=os.getpid(),
            started_at=self._started_at,
            seen_at=now,
            revision=status.revision,
            base_id=status.base_id,
            adapter_version=status.adapter_version,
            wanted_base_id=status.wanted_base_id if elsewhere else None,
            wanted_version=status.wanted_version if elsewhere else None,
            degraded=status.degraded,
            trial_version=trial.loaded,
            trial_trouble=trial.trouble,
        )
        with self._database.write() as connection:
            repository.write(connection, replica)
            repository.delete_unseen(connection, now - FORGOTTEN_AFTER)

    def _leave(self) -> None:
        try:
            with self._database.write() as connection:
                repository.delete(connection, self.replica_id)
        except AdaptideError as error:  # it is forgotten after a while
            log.warning("replica_not_signed_off", reason=error.detail)


def read_all(database: Database) -> list[Replica]:
    """Every replica that is known."""
    with database.read() as connection:
        return repository.list_all(connection)


def read_views(database: Database, clock: Clock, settings: Settings) -> list[ReplicaView]:
    """Every replica that is known, and whether it is late."""
    patience, now = LATE_AFTER * settings.heartbeat_interval, clock()
    return [ReplicaView(**asdict(found), late=now - found.seen_at > patience) for found in read_all(database)]
