"""SQL of recommendations."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Connection

from service.recommend.tables import recommendations

_INSERT = recommendations.insert()


def insert(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    connection.execute(_INSERT, rows)
