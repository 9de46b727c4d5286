"""SQL of recommendations."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from service.kit.db import one_of
from service.kit.ids import least_uuid7
from service.recommend.tables import recommendations

_INSERT = recommendations.insert()


def insert(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    connection.execute(_INSERT, rows)


def delete_before(connection: Connection, before: datetime, limit: int) -> int:
    """Delete up to `limit` recommendations made before then; how many. Found by their ids, which sort by time."""
    old = sa.select(recommendations.c.recommendation_id).where(
        recommendations.c.recommendation_id < least_uuid7(before), recommendations.c.created_at < before
    )
    ids = list(connection.scalars(old.order_by(recommendations.c.recommendation_id).limit(limit)))
    if ids:
        chosen = one_of(connection, recommendations.c.recommendation_id, ids)
        connection.execute(recommendations.delete().where(chosen))
    return len(ids)
