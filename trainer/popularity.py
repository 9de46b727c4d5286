"""Popularity as it stood before a window, kept in the store: an update counts only the events that are new to it."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np

from service.catalog.index import CatalogueIndex
from service.events import repository
from service.events.repository import PopularityKey
from service.kit.db import Database
from service.recommend.popularity import EPOCH, FAINTEST
from service.recommend.ranking import Float64
from service.recommend.votes import Votes
from service.settings import Settings
from trainer.progress import Report, silent

EVENTS_PER_QUERY = 50_000


class KeptPopularity:
    """What service.recommend.popularity.Popularity counts, up to an event of the caller's choice.

    An item's weight is the sum of 2^(occurred_at / half-life) over the interactions that count, held as its log2:
    nothing decays in place and nothing overflows. What an erased user had done stays counted until popularity is
    counted anew; the counts name no user.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._key = PopularityKey(
            settings.popularity_half_life.total_seconds(), tuple(sorted(settings.ignored_event_types))
        )
        self._through_seq = 0
        self._log2_weights: dict[str, float] = {}
        self._votes: tuple[int, Votes] | None = None  # and through which event they were taken

    def by_row(self, index: CatalogueIndex, through_seq: int, *, keep: bool, on_count: Report = silent) -> Float64:
        """float64 [rows], the largest scaled to 1, 0 without interactions: all events up to `through_seq` counted.

        They must all be visible, as those of a sealed window are. keep: also store what was counted; False writes
        nothing. on_count: told through which event, of which.
        """
        self._start(through_seq, keep)
        while self._through_seq < through_seq:
            keep = self._count_some(through_seq, keep)
            on_count("popularity", self._through_seq, through_seq)
        found = self._log2_weights
        exponents = np.array([found.get(item.item_id, -np.inf) for item in index.items])
        if not np.isfinite(exponents).any():
            return np.zeros(len(exponents))
        weights = np.exp2(np.maximum(exponents - exponents.max(), FAINTEST))
        return np.where(np.isfinite(exponents), weights, 0.0)

    def _start(self, through_seq: int, keep: bool) -> None:
        """Stand at what is held or at what is stored: the further one, but the stored one where it is to be moved."""
        with self._database.read() as connection:
            stored = repository.popularity_counted_through(connection, self._key)
            usable = stored is not None and stored <= through_seq
            if stored is not None and usable and stored != self._through_seq and (keep or stored > self._through_seq):
                self._through_seq, self._log2_weights = stored, repository.stored_popularity(connection)
            elif self._through_seq > through_seq or (keep and stored is None):
                self._through_seq, self._log2_weights = 0, {}
        if keep and stored is None:
            with self._database.write() as connection:
                repository.begin_popularity(connection, self._key)

    def _count_some(self, through_seq: int, keep: bool) -> bool:
        """One query's events more; whether it was kept, if it was to be."""
        after = self._through_seq
        with self._database.read() as connection:
            if self._votes is None or self._votes[0] != after:
                self._votes = after, Votes.standing(connection, after, self._key.ignored_types)
            rows = repository.interactions_after(connection, after, EVENTS_PER_QUERY, through_seq)
        votes = self._votes[1]
        self._through_seq = rows[-1].seq if len(rows) == EVENTS_PER_QUERY else through_seq
        changed = added(self._log2_weights, votes.take(rows), self._key.half_life_s)
        self._votes = self._through_seq, votes
        self._log2_weights |= changed
        if not keep:
            return False
        with self._database.write() as connection:
            return repository.advance_popularity(connection, after, self._through_seq, changed)


def added(
    log2_weights: Mapping[str, float], interactions: Sequence[tuple[str, datetime]], half_life_s: float
) -> dict[str, float]:
    """log2 weights of the items that occur in `interactions`, these counted on top of what they weighed."""
    if not interactions:
        return {}
    item_ids, place = np.unique([item_id for item_id, _ in interactions], return_inverse=True)
    exponents = np.array([(at - EPOCH).total_seconds() for _, at in interactions]) / half_life_s
    newest = np.full(len(item_ids), -np.inf)
    np.maximum.at(newest, place, exponents)  # sums relative to it can neither overflow nor vanish
    own = newest + np.log2(np.bincount(place, np.exp2(exponents - newest[place])))
    names = item_ids.tolist()
    before = np.array([log2_weights.get(name, -np.inf) for name in names])
    return dict(zip(names, np.logaddexp2(before, own).tolist(), strict=True))
