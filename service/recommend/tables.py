"""What was recommended, so that a later event can name it."""

import sqlalchemy as sa

from service.kit.db import Json, UtcDateTime, metadata

recommendations = sa.Table(
    "recommendations",
    metadata,
    sa.Column("recommendation_id", sa.String(36), primary_key=True),
    sa.Column("user_id", sa.String(128)),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("strategy", sa.String(16), nullable=False),
    sa.Column("fallback_reason", sa.String(64)),
    sa.Column("base_id", sa.String(64)),
    sa.Column("adapter_version", sa.String(64)),
    sa.Column("catalog_revision", sa.BigInteger, nullable=False),
    sa.Column("history", Json, nullable=False, comment="the item ids that the prompt held, oldest first"),
    sa.Column("items", Json, nullable=False, comment="list of [item_id, score] in rank order"),
    sa.Index(None, "user_id", "created_at"),
)
