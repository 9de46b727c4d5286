"""A candidate ranks what was answered, after the reply and when nobody waits; what it would have shown is stored.

Only a few wait for that, and under load the rest is dropped, so the sample leans towards quiet times.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import structlog

from service.catalog.index import CatalogueIndex
from service.catalog.trie import Int64
from service.errors import AdaptideError, Unavailable
from service.generation.batching import Answer, Batcher
from service.generation.engine import GenerationRequest
from service.kit.clock import Clock
from service.kit.db import Database
from service.kit.grouped import Grouped
from service.kit.priority import give_way
from service.recommend.ranking import Float64, rank_leaves
from service.telemetry import SHADOW_RANKINGS
from service.trials import repository

WRITTEN_TOGETHER = 32

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class ShadowJob:
    """What was asked: rows of the prompt, rows that are left out, how many; and under which id it was answered."""

    recommendation_id: str
    index: CatalogueIndex
    prompt: Int64
    excluded: Int64
    limit: int


class ShadowRanker:
    """`offer` on the event loop, which it never blocks; start() and stop() once each."""

    def __init__(
        self, batcher: Batcher, database: Database, clock: Clock, popularity: Callable[[CatalogueIndex], Float64]
    ) -> None:
        self._batcher, self._database, self._clock, self._popularity = batcher, database, clock, popularity
        self._writer = Grouped("shadow-writer", self._write, most=WRITTEN_TOGETHER, max_queued=4 * WRITTEN_TOGETHER)
        self._slow = False

    def start(self) -> None:
        self._writer.start()

    def stop(self) -> None:
        self._writer.stop()

    def offer(self, job: ShadowJob) -> None:
        """Rank it when there is time; never raises."""
        trie = job.index.trie
        request = GenerationRequest(job.index.codes[job.prompt], job.limit, trie.excluded_leaves(job.excluded))
        try:
            asked = self._batcher.spare(request, trie, job.index.base_id or "")
        except Unavailable:
            SHADOW_RANKINGS.labels("dropped").inc()
            return
        asked.add_done_callback(lambda answered: self._ranked(job, answered))

    def _ranked(self, job: ShadowJob, answered: "Future[Answer]") -> None:
        """On the thread that computes."""
        if answered.cancelled() or isinstance(answered.exception(), Unavailable):
            SHADOW_RANKINGS.labels("dropped").inc()
        elif answered.exception() is not None:
            SHADOW_RANKINGS.labels("failed").inc()
        else:
            try:
                self._writer.ask((job, answered.result())).add_done_callback(_written)
            except Unavailable:
                SHADOW_RANKINGS.labels("dropped").inc()

    def _write(self, ranked: "Sequence[tuple[ShadowJob, Answer]]") -> list[None]:
        if not self._slow:
            give_way()
            self._slow = True
        rows = [self._row(job, answer) for job, answer in ranked]
        with self._database.write(flushed=False) as connection:
            stored = repository.insert_shadow(connection, rows)
        SHADOW_RANKINGS.labels("stored").inc(stored)
        SHADOW_RANKINGS.labels("dropped").inc(len(rows) - stored)
        return [None] * len(rows)

    def _row(self, job: ShadowJob, answer: Answer) -> Mapping[str, Any]:
        index = job.index
        found = rank_leaves(answer.generated, index.trie, self._popularity(index), job.excluded, job.limit)
        pairs = zip(found.rows.tolist(), found.scores.tolist(), strict=True)
        return {
            "recommendation_id": job.recommendation_id,
            "adapter_version": answer.adapter_version,
            "items": [[index.items[row].item_id, score] for row, score in pairs],
            "created_at": self._clock(),
        }


def _written(written: "Future[None]") -> None:
    error = written.exception()
    if error is not None:
        SHADOW_RANKINGS.labels("failed").inc()
        log.warning("shadow_not_stored", error=error.detail if isinstance(error, AdaptideError) else repr(error))
