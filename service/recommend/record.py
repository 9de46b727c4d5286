"""Recommendations are stored before their replies are sent; those that are ready together share one commit."""

from collections.abc import Mapping, Sequence
from typing import Any

from service.kit.db import Database
from service.kit.grouped import Grouped
from service.recommend import repository

WRITTEN_TOGETHER = 128


def recommendation_writer(database: Database) -> Grouped[Mapping[str, Any], None]:
    """Inserts rows of `recommendations`; a row's future has its result once the commit is durable."""

    def write(rows: Sequence[Mapping[str, Any]]) -> list[None]:
        with database.write() as connection:
            repository.insert(connection, rows)
        return [None] * len(rows)

    return Grouped("recommendation-writer", write, most=WRITTEN_TOGETHER, max_queued=8 * WRITTEN_TOGETHER)
