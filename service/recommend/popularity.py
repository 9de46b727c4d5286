"""Recency-weighted popularity: each interaction that counts (service.recommend.votes) weighs 2^(-age / half-life)."""

import threading
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

import numpy as np

from service.catalog.index import CatalogueIndex
from service.recommend.ranking import Float64

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FAINTEST = -1000.0
"""Exponent of 2 at which an old interaction still counts: a weight of 0 is an item that nobody ever took."""


class Popularity:
    """Sums that can grow event by event. Weights are kept as 2^(t / half-life - offset), so nothing decays in place."""

    def __init__(self, half_life: timedelta) -> None:
        self._half_life_s = half_life.total_seconds()
        self._offset: float | None = None  # exponent of the newest event so far, keeps numbers in range
        self._newest: float | None = None  # exponent of the newest event that was counted here
        self._weights: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, interactions: Iterable[tuple[str, datetime]]) -> int:
        """Count (item_id, occurred_at) pairs; returns how many."""
        count = 0
        with self._lock:
            for item_id, at in interactions:
                exponent = (at - EPOCH).total_seconds() / self._half_life_s
                if self._offset is None:
                    self._offset = exponent
                elif exponent - self._offset > 500:  # 2^500 is far from overflow; rebase long before 2^1023
                    factor = 2.0 ** max(self._offset - exponent, FAINTEST)
                    self._weights = {item: weight * factor for item, weight in self._weights.items()}
                    self._offset = exponent
                self._newest = exponent if self._newest is None else max(exponent, self._newest)
                weight = 2.0 ** max(exponent - self._offset, FAINTEST)
                self._weights[item_id] = self._weights.get(item_id, 0.0) + weight
                count += 1
        return count

    def weights(self) -> Mapping[str, float]:
        """Item -> weight, a copy; comparable with one another only."""
        with self._lock:
            return dict(self._weights)

    def state(self) -> tuple[float, Mapping[str, float]] | None:
        """Everything that was counted, for `restore`; None before the first interaction."""
        with self._lock:
            return None if self._offset is None else (self._offset, dict(self._weights))

    def restore(self, offset: float, weights: Mapping[str, float]) -> None:
        """Go on from what another one of the same half-life has counted, instead of from nothing."""
        with self._lock:
            self._offset, self._weights = offset, dict(weights)

    def by_row(self, index: CatalogueIndex) -> Float64:
        """float64 [rows], the largest scaled to 1; 0 for items without interactions."""
        return self.scaled(index)[0]

    def scaled(self, index: CatalogueIndex) -> tuple[Float64, float]:
        """`by_row`, and what one interaction at the time of the newest one weighs there.

        After `restore` the newest time is not known until something is added; the weight is then too small, never too
        large. 0 before the first interaction.
        """
        found = self.weights()
        values = np.array([found.get(item.item_id, 0.0) for item in index.items])
        most = float(values.max()) if len(values) else 0.0
        if not most > 0:
            return values, 0.0
        with self._lock:
            offset, newest = self._offset or 0.0, self._newest
        return values / most, 2.0 ** min(1000.0, 0.0 if newest is None else newest - offset) / most
