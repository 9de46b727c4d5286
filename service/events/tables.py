"""Interactions, append-only, in the order in which the store accepted them."""

import sqlalchemy as sa

from service.kit.db import BigInt, Json, UtcDateTime, metadata

events = sa.Table(
    "events",
    metadata,
    # The server sequence: windows are ranges of it, so each acknowledged event is in exactly one.
    sa.Column("seq", BigInt, primary_key=True, autoincrement=True),
    sa.Column("event_id", sa.String(128), nullable=False, unique=True),
    sa.Column(
        "body_hash",
        sa.String(64),
        nullable=False,
        comment="sha256 of the canonical body: same id, other body is a conflict",
    ),
    sa.Column("user_id", sa.String(128), nullable=False),
    sa.Column(
        "item_id", sa.String(128), nullable=False, comment="not a foreign key: an event may come before its item"
    ),
    sa.Column("event_type", sa.String(32), nullable=False),
    sa.Column("occurred_at", UtcDateTime, nullable=False),
    sa.Column("received_at", UtcDateTime, nullable=False),
    sa.Column("value", sa.Float),
    sa.Column("recommendation_id", sa.String(36)),
    sa.Column("position", sa.Integer),
    sa.Column("properties", Json),
    sa.Index(None, "user_id", "occurred_at", "seq"),
    sa.Index(
        None,
        "recommendation_id",
        postgresql_where=sa.text("recommendation_id IS NOT NULL"),
        sqlite_where=sa.text("recommendation_id IS NOT NULL"),
    ),
    sqlite_autoincrement=True,  # a deleted sequence number is never given again
)
