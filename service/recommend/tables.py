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
    sa.Column("request", Json, comment="what was asked for: fields that differ from their defaults, and the limit"),
    sa.Column(
        "computed",
        Json,
        comment="what else the reply depended on (docs/time-travel.md): past, popular, batch, copied_from",
    ),
    sa.Column("settings_id", sa.String(16), comment="of recommendation_settings"),
    sa.Column("arm", sa.String(8), comment="control or canary: the user's arm then; null: no canary"),
    sa.Index(None, "user_id", "created_at"),
)

recommendation_settings = sa.Table(
    "recommendation_settings",
    metadata,
    sa.Column("settings_id", sa.String(16), primary_key=True, comment="16 hex digits of the details' BLAKE2b"),
    sa.Column("details", Json, nullable=False, comment="settings, engine, device, threads that shape a reply"),
    sa.Column("created_at", UtcDateTime, nullable=False),
    comment="One row for each way in which replies were computed; few",
)
