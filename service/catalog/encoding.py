"""Holds the active base's codec, so that a new item gets its codes in the transaction that stores it."""

import time
from collections.abc import Callable
from datetime import timedelta

from service.catalog import repository
from service.catalog.service import ActiveCodec, Codec, active_base_id, encode_missing
from service.errors import ArtifactError
from service.kit.backoff import Backoff
from service.kit.db import Database
from service.kit.poller import Poller

FIRST_RETRY_S, LONGEST_RETRY_S = 2.0, 60.0
"""Opening a codec reads its whole base, so one that is refused is tried ever more rarely."""


class CodecFollower:
    """`active` is the codec in force. Items that came in without codes (imports) are encoded in the background."""

    def __init__(
        self,
        database: Database,
        interval: timedelta,
        open_codec: Callable[[str], Codec],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """open_codec: base id -> its codec, verified; may raise ArtifactError (then it is tried again)."""
        self._database = database
        self._open_codec = open_codec
        self._active: ActiveCodec | None = None
        self._checked: tuple[str, int] | None = None
        self._backoff = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S, monotonic)
        self._failed: str | None = None  # the base whose codec could not be opened
        self._poller = Poller("codec-follower", interval, self.refresh)

    def active(self) -> ActiveCodec | None:
        """None until a base is active and its codec is loaded."""
        return self._active

    def start(self) -> None:
        self._poller.start()

    def stop(self) -> None:
        self._poller.stop()

    def refresh(self) -> None:
        """Follow the active base and encode what lacks codes."""
        with self._database.read() as connection:
            base_id, revision = active_base_id(connection), repository.current_revision(connection)
        if base_id is None:
            self._active = None
            return
        if self._active is None or self._active.base_id != base_id:
            if base_id == self._failed and self._backoff.pause_s:
                return
            try:
                self._active = ActiveCodec(base_id, self._open_codec(base_id))
            except ArtifactError:
                if base_id != self._failed:
                    self._backoff.reset()
                self._failed = base_id
                self._backoff.failed()
                raise
            self._failed = None
        if (base_id, revision) != self._checked:
            encode_missing(self._database, self._active)
            self._checked = (base_id, revision)
