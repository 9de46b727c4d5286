"""Keeps this process's CatalogueIndex equal to the store: one read per interval, a new snapshot after a change.

A snapshot is made from the one before: what a change costs does not grow with what stays, but for passes over arrays.
"""

import threading
from datetime import datetime, timedelta

from service.catalog import repository
from service.catalog.index import EMPTY, CatalogueIndex, IndexedItem
from service.catalog.repository import StoredItem
from service.catalog.service import active_base_id
from service.kit.db import Database
from service.kit.poller import Poller

PAGE = 20_000


class CatalogueFollower:
    """`index` is the newest snapshot; `refresh` brings it up to date at once, as after this process's own writes."""

    def __init__(self, database: Database, interval: timedelta) -> None:
        self._database = database
        self._index = EMPTY
        self._lock = threading.Lock()
        self._poller = Poller("catalogue-follower", interval, self.refresh)

    @property
    def index(self) -> CatalogueIndex:
        return self._index

    def start(self) -> None:
        self._poller.start()

    def stop(self) -> None:
        self._poller.stop()

    def notify(self) -> None:
        """Refresh soon, in the background."""
        self._poller.notify()

    def refresh(self) -> CatalogueIndex:
        """Read what changed since the held revision. Raises StoreUnavailable; the held snapshot stays.

        Another base means other codes for everything, so then everything is read again.
        """
        with self._lock:
            held = self._index
            found: dict[str, tuple[datetime, IndexedItem]] = {}
            with self._database.read(patient=True) as connection:
                base_id = active_base_id(connection)
                if base_id != held.base_id:
                    held = CatalogueIndex((), 0, base_id)
                revision = held.revision
                while rows := repository.changed_since(connection, revision, PAGE):
                    found |= {row.item_id: (row.created_at, _indexed(row, base_id)) for row in rows}
                    revision = rows[-1].revision
            if found:
                ordered = dict(sorted(found.items(), key=lambda one: (one[1][0], one[0])))
                held = held.changed({name: item for name, (_, item) in ordered.items()}, revision=revision)
            if held is not self._index:
                self._index = held.load()  # here, not by a request
            return self._index


def _indexed(item: StoredItem, base_id: str | None) -> IndexedItem:
    return IndexedItem.of(item, item.codes if item.base_id == base_id else None)
