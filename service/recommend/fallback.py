"""Popularity of this process: filled from the store in the background, asked by every reply that needs it."""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from datetime import timedelta

import numpy as np

from service.catalog.index import CatalogueIndex
from service.events import repository
from service.kit.db import Database
from service.kit.poller import Poller
from service.recommend.popularity import Popularity
from service.recommend.popularity_cache import Counts, SharedCounts
from service.recommend.ranking import Float64
from service.recommend.votes import Votes

PAGE = 50_000
BASES_KNOWN = 8  # a request asks for the basis of what it was given at once


class PopularityFollower:
    """`by_row` gives float64 [rows] for a snapshot, the top item at 1."""

    def __init__(
        self,
        database: Database,
        half_life: timedelta,
        interval: timedelta,
        ignored_types: Collection[str],
        index: Callable[[], CatalogueIndex],
        shared: SharedCounts | None = None,
    ) -> None:
        """shared: where the first replica leaves its counts, so that a later one need not read every event."""
        self._database = database
        self._ignored_types = frozenset(ignored_types)
        self._votes = Votes(ignored_types)
        self._popularity = Popularity(half_life)
        self._shared = shared
        self._from_nothing_at: float | None = None  # when this count, or the one that it goes on from, began
        self._through_seq = 0
        self._index = index
        self._counted: tuple[CatalogueIndex, Float64, tuple[int, int]] | None = None
        self._shown: tuple[CatalogueIndex, Float64] | None = None
        self._interaction = 0.0
        self._pair = threading.Lock()  # what is counted and through where change together
        self._bases: deque[tuple[Float64, int, int]] = deque(maxlen=BASES_KNOWN)
        self._poller = Poller("popularity-follower", interval, self.refresh)

    def start(self) -> None:
        self._poller.start()

    def stop(self) -> None:
        self._poller.stop()

    def refresh(self) -> None:
        """Count the events that are new since the last time. Raises StoreUnavailable.

        On PostgreSQL a transaction that commits after a later one may be passed over: a few events in millions, for a
        ranking that is an estimate anyhow; a restart, or the first one in a day where counts are shared, counts
        everything again.
        """
        grown = self._from_nothing_at is None and self._begin()
        while True:
            with self._database.read(patient=True) as connection:
                rows = repository.interactions_after(connection, self._through_seq, PAGE)
            counting = self._votes.take(rows)
            with self._pair:
                grown |= self._popularity.add(counting) > 0
                if rows:
                    self._through_seq = rows[-1].seq
            if len(rows) < PAGE:
                break
        index, counted = self._index(), self._counted
        if grown or counted is None or not index.numbered_like(counted[0]) or len(index.items) > len(counted[1]):
            self._count(index)
        if grown and self._shared is not None and self._shared.due():
            if (state := self._popularity.state()) is not None and self._from_nothing_at is not None:
                self._shared.share(Counts(self._through_seq, self._from_nothing_at, *state))

    def _begin(self) -> bool:
        """Go on from what is shared, when there is something; whether there was."""
        shared = None
        if self._shared is not None:
            with self._database.read() as connection:
                newest = repository.max_seq(connection)
            shared = self._shared.load(newest)
        self._from_nothing_at = time.time() if shared is None else shared.from_nothing_at
        if shared is not None:
            with self._database.read() as connection:
                self._votes = Votes.standing(connection, shared.through_seq, self._ignored_types)
            self._popularity.restore(shared.offset, shared.weights)
            self._through_seq = shared.through_seq
        return shared is not None

    def by_row(self, index: CatalogueIndex) -> Float64:
        """For exactly this snapshot; at most one interval old. Rows newer than the last count weigh 0."""
        counted, shown = self._counted, self._shown
        if shown is not None and shown[0] is index:
            return shown[1]
        if counted is None or not index.numbered_like(counted[0]):
            return self._count(index)
        weights = np.zeros(len(index.items))
        weights[: len(counted[1])] = counted[1][: len(weights)]
        self._bases.append((weights, *counted[2]))
        self._shown = (index, weights)
        return weights

    def basis(self, weights: Float64) -> tuple[int, int] | None:
        """Of what `by_row` gave lately: the last event that it counts, and how many of the first rows it knew."""
        for known, through_seq, rows in tuple(self._bases):
            if known is weights:
                return through_seq, rows
        return None

    def interaction(self) -> float:
        """What one interaction of now weighs in `by_row`; 0 before the first one."""
        return self._interaction

    def _count(self, index: CatalogueIndex) -> Float64:
        with self._pair:
            (weights, self._interaction), through_seq = self._popularity.scaled(index), self._through_seq
        basis = through_seq, len(weights)
        self._bases.append((weights, *basis))
        self._counted, self._shown = (index, weights, basis), (index, weights)
        return weights
