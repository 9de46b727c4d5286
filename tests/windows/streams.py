"""Events as rows, without the API."""

import uuid
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from service.events.tables import events
from service.kit.db import Database

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def insert_events(connection: Connection, count: int, received_at: datetime = NOON) -> list[int]:
    """`count` events inside the caller's transaction; returns their sequence numbers."""
    rows = [
        {
            "event_id": str(uuid.uuid4()),
            "user_id": "u",
            "item_id": "i",
            "event_type": "view",
            "occurred_at": received_at,
            "received_at": received_at,
        }
        for _ in range(count)
    ]
    return list(connection.execute(events.insert().returning(events.c.seq), rows).scalars())


def write_events(database: Database, count: int, received_at: datetime = NOON) -> list[int]:
    """`count` acknowledged events."""
    with database.write() as connection:
        return insert_events(connection, count, received_at)


def all_sequences(database: Database) -> list[int]:
    with database.read() as connection:
        return list(connection.execute(sa.select(events.c.seq).order_by(events.c.seq)).scalars())
