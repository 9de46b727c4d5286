"""A lease that is held while a block runs: renewed in the background, given back at the end."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from service.errors import AdaptideError, LeaseLost
from service.kit import leases
from service.kit.db import Database
from service.kit.leases import Lease

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Pulse:
    """How a holder shows that its work goes on: after `patience` without a beat its lease is given up, for good.

    on_silence: called then, once, with the seconds of silence, on the renewing thread. clock: monotonic seconds.
    """

    patience: timedelta
    on_silence: Callable[[float], object]
    clock: Callable[[], float] = time.monotonic
    given_up: bool = False
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self._last = self.clock()

    def beat(self) -> None:
        """Raises LeaseLost when it comes too late."""
        if self.given_up:
            raise LeaseLost(
                f"the lease was given up: the work showed no progress for {self.patience.total_seconds():g} s"
            )
        self._last = self.clock()

    def stopped(self) -> bool:
        """Whether the lease is to be given up, from now on."""
        silent = self.clock() - self._last
        if silent <= self.patience.total_seconds():
            return False
        self.given_up = True
        self.on_silence(silent)
        return True


@contextmanager
def held(
    database: Database, name: str, owner: str, duration: timedelta, pulse: Pulse | None = None
) -> Iterator[Lease | None]:
    """The lease, or None when another process holds it. Renewed every third of `duration` under the same fence.

    A holder that was paused too long finds out where it matters: its next write checks the fence and raises LeaseLost.
    pulse: so does one that hangs, whose lease is given back while the block still runs; None: it may take any time.
    """
    with database.write() as connection:
        lease = leases.acquire(connection, name, owner, duration)
    if lease is None:
        yield None
        return
    ended = threading.Event()
    keeper = threading.Thread(
        target=_renew, args=(database, lease, duration, ended, pulse), name=f"lease-{name}", daemon=True
    )
    keeper.start()
    try:
        yield lease
    finally:
        ended.set()
        keeper.join()
        _release(database, lease)


def _renew(database: Database, lease: Lease, duration: timedelta, ended: threading.Event, pulse: Pulse | None) -> None:
    pause = duration / 3 if pulse is None else min(duration / 3, pulse.patience)
    while not ended.wait(pause.total_seconds()):
        if pulse is not None and pulse.stopped():
            _release(database, lease)
            return
        try:
            with database.write() as connection:
                leases.check(connection, lease)
                leases.acquire(connection, lease.name, lease.owner, duration)
        except AdaptideError as error:
            log.warning("lease_not_renewed", lease=lease.name, error=error.detail)


def _release(database: Database, lease: Lease) -> None:
    try:
        with database.write() as connection:
            leases.release(connection, lease)
    except AdaptideError as error:  # it runs out by itself
        log.warning("lease_not_released", lease=lease.name, error=error.detail)
