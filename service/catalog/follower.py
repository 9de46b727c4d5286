"""Keeps this process's CatalogueIndex equal to the store: one read per interval, a new snapshot after a change."""

import threading
from datetime import timedelta

from service.catalog import repository
from service.catalog.index import EMPTY, CatalogueIndex
from service.catalog.repository import StoredItem
from service.catalog.service import active_base_id
from service.kit.db import Database
from service.kit.poller import Poller

PAGE = 20_000


class CatalogueFollower:
    """`index` is the newest snapshot; `refresh` brings it up to date at once, as after this process's own writes."""

    def __init__(self, database: Database, interval: timedelta) -> None:
        self._database = database
        self._items: dict[str, StoredItem] = {}
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
        """Read what changed since the held revision. Raises StoreUnavailable; the held snapshot stays."""
        with self._lock:
            held = self._index
            revision = held.revision
            with self._database.read() as connection:
                base_id = active_base_id(connection)
                while rows := repository.changed_since(connection, revision, PAGE):
                    self._items |= {row.item_id: row for row in rows}
                    revision = rows[-1].revision
            if revision != held.revision or base_id != held.base_id:
                self._index = self._snapshot(revision, base_id)
                _ = self._index.trie, self._index.row_of, self._index.rows_by_category  # built here, not by a request
            return self._index

    def _snapshot(self, revision: int, base_id: str | None) -> CatalogueIndex:
        stored = self._items.values()
        codes = {item.item_id: item.codes for item in stored if item.codes is not None and item.base_id == base_id}
        return CatalogueIndex.of(stored, codes, revision=revision, base_id=base_id)
