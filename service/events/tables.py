"""Interactions, append-only, in the order in which the store accepted them."""

import sqlalchemy as sa

from service.kit.db import BigInt, Json, UtcDateTime, metadata

events = sa.Table(
    "events",
    metadata,
    # The server sequence: windows are ranges of it, so each acknowledged event is in exactly one.
    sa.Column("seq", BigInt, primary_key=True, autoincrement=True),
    sa.Column("event_id", sa.String(128), nullable=False),  # unique by event_ids
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
    # With what a user's past is made of, so that reading it needs no row: each would lie on a page of its own.
    sa.Index(None, "user_id", "occurred_at", "seq", "item_id", "event_type"),
    sa.Index(
        None,
        "recommendation_id",
        postgresql_where=sa.text("recommendation_id IS NOT NULL"),
        sqlite_where=sa.text("recommendation_id IS NOT NULL"),
    ),
    sqlite_autoincrement=True,  # a deleted sequence number is never given again
    postgresql_partition_by="RANGE (seq)",  # partitions: service.events.partitions, docs/decisions/0019
)

# Not in `events`: on a partitioned table an id could be unique within its partition only.
event_ids = sa.Table(
    "event_ids",
    metadata,
    sa.Column("event_id", sa.String(128), primary_key=True),
    sa.Column(
        "body_hash",
        sa.LargeBinary(32),
        nullable=False,
        comment="sha256 of the canonical body: same id, other body is a conflict",
    ),
    sqlite_with_rowid=False,
)

item_popularity = sa.Table(
    "item_popularity",
    metadata,
    sa.Column("item_id", sa.String(128), primary_key=True),
    sa.Column(
        "log2_weight",
        sa.Float(53),
        nullable=False,
        comment="log2 of the sum of 2^(occurred_at / half-life), both in seconds, over the item's interactions",
    ),
    comment="What the updater has counted, so that an update reads only what is new",
)

popularity_state = sa.Table(
    "popularity_state",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("through_seq", BigInt, nullable=False, comment="the last event that item_popularity counts"),
    sa.Column("half_life_s", sa.Float(53), nullable=False),
    sa.Column("ignored_types", Json, nullable=False, comment="sorted list: event types that were not counted"),
    sa.CheckConstraint("id = 1", name="single_row"),
    comment="One row at most; none before the first count. Another half-life or other types: counted anew",
)
