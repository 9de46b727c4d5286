"""A lease that is held while a block runs: renewed in the background, given back at the end."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import structlog

from service.errors import AdaptideError
from service.kit import leases
from service.kit.db import Database
from service.kit.leases import Lease

log = structlog.get_logger(__name__)


@contextmanager
def held(database: Database, name: str, owner: str, duration: timedelta) -> Iterator[Lease | None]:
    """The lease, or None when another process holds it. Renewed every third of `duration` under the same fence.

    A holder that was paused too long finds out where it matters: its next write checks the fence and raises LeaseLost.
    """
    with database.write() as connection:
        lease = leases.acquire(connection, name, owner, duration)
    if lease is None:
        yield None
        return
    ended = threading.Event()
    keeper = threading.Thread(target=_renew, args=(database, lease, duration, ended), name=f"lease-{name}", daemon=True)
    keeper.start()
    try:
        yield lease
    finally:
        ended.set()
        keeper.join()
        try:
            with database.write() as connection:
                leases.release(connection, lease)
        except AdaptideError as error:  # it runs out by itself
            log.warning("lease_not_released", lease=name, error=error.detail)


def _renew(database: Database, lease: Lease, duration: timedelta, ended: threading.Event) -> None:
    while not ended.wait(duration.total_seconds() / 3):
        try:
            with database.write() as connection:
                leases.check(connection, lease)
                leases.acquire(connection, lease.name, lease.owner, duration)
        except AdaptideError as error:
            log.warning("lease_not_renewed", lease=lease.name, error=error.detail)
