"""Says to every replica that something has changed. The store stays the truth: a message only makes them look sooner.

A message that nobody hears is repaired by the polling that every replica does anyhow, and by a look after each
(re)connection.
"""

import random
import threading
from collections.abc import Callable, Mapping
from enum import StrEnum

import structlog

from service.kit.redis_link import FIRST_PAUSE_S, LONGEST_PAUSE_S, RedisAway, RedisLink

log = structlog.get_logger(__name__)

LISTEN_S = 0.25  # between looks at whether the thread is to end


class Change(StrEnum):
    """What may have changed."""

    POINTER = "pointer"
    CATALOGUE = "catalogue"
    TRIAL = "trial"


Announce = Callable[[Change], None]
"""Called after a commit; never raises, and takes no longer than one answer of Redis may take."""


def nobody(change: Change) -> None:
    """The announcement without Redis."""


class Bus:
    """Announcements over one link, and a thread that hears them. start() and stop() once each."""

    def __init__(self, link: RedisLink, react: Mapping[Change, Callable[[], object]]) -> None:
        """react: called for each announcement, this process's own included; must return at once."""
        self._link, self._react = link, dict(react)
        self._channel = link.key("changes")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bus", daemon=True)

    def announce(self, change: Change) -> None:
        """Tell every replica. Never raises."""
        announce(self._link, change)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._stopping.is_set():
            try:
                if self._link.up:
                    self._listen()
                    pause = FIRST_PAUSE_S
            except self._link.failures:
                log.info("bus_lost")
            except Exception:  # the thread must outlive whatever a message does
                log.exception("bus_failed")
            self._stopping.wait(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _listen(self) -> None:
        subscription = self._link.pubsub()
        try:
            subscription.subscribe(self._channel)
            while not self._stopping.is_set():
                message = subscription.get_message(timeout=LISTEN_S)
                if message is None:
                    continue
                if message["type"] == "subscribe":  # from here on nothing is missed; what was before is looked up
                    for react in self._react.values():
                        react()
                elif message["type"] == "message":
                    self._hear(message["data"])
        finally:
            subscription.close()

    def _hear(self, data: bytes) -> None:
        try:
            change = Change(data.decode())
        except ValueError:  # of a newer version's replica
            return
        if react := self._react.get(change):
            react()


def announce(link: RedisLink, change: Change) -> None:
    """Tell every replica. Never raises: whoever is not told polls."""
    try:
        link.run(lambda client: client.publish(link.key("changes"), change.value))
    except RedisAway as error:
        log.info("change_not_announced", change=change.value, reason=str(error))
