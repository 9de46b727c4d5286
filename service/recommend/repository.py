"""SQL of recommendations."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.engine import Connection

from service.recommend.tables import recommendations


def insert(connection: Connection, row: Mapping[str, Any]) -> None:
    connection.execute(recommendations.insert().values(**row))
