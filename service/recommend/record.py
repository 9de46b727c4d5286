"""Recommendations are stored before their replies are sent; those that are ready together share one commit.

Their commits wait for no disk (docs/decisions/0024): an acknowledged event is flushed behind the recommendation that it
names.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from service.kit.db import Database
from service.kit.grouped import Grouped
from service.recommend import repository

WRITTEN_TOGETHER = 128


def recommendation_writer(database: Database) -> Grouped[Mapping[str, Any], None]:
    """Inserts rows of `recommendations`; a row's future has its result once it is committed."""

    def write(rows: Sequence[Mapping[str, Any]]) -> list[None]:
        with database.write(flushed=False) as connection:
            repository.insert(connection, rows)
        return [None] * len(rows)

    return Grouped("recommendation-writer", write, most=WRITTEN_TOGETHER, max_queued=8 * WRITTEN_TOGETHER)
