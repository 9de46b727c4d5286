"""Trials as an append-only history whose latest row is the present, and what a candidate ranked in the shadow."""

import sqlalchemy as sa

from service.kit.db import Json, UtcDateTime, metadata

trial_moves = sa.Table(
    "trial_moves",
    metadata,
    sa.Column("audit_id", sa.String(36), primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False, unique=True, comment="1, 2, ..; the highest is the present"),
    sa.Column("deed", sa.String(16), nullable=False, comment="start, change or end"),
    sa.Column("adapter_version", sa.String(64), sa.ForeignKey("adapters.adapter_version"), nullable=False),
    sa.Column("base_id", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False, comment="shadow or canary"),
    sa.Column("share", sa.Float, nullable=False, comment="of users, above 0 and up to 1"),
    sa.Column("salt", sa.String(64), nullable=False, comment="of the hash that picks users"),
    sa.Column("started_at", UtcDateTime, nullable=False),
    sa.Column("ends_at", UtcDateTime, comment="null: when somebody ends it"),
    sa.Column("because", sa.String(16), comment="why it ended"),
    sa.Column("actor", sa.String(128), nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("idempotency_key", sa.String(128), unique=True),
    sa.Column("request_hash", sa.String(64)),
    sa.Column("created_at", UtcDateTime, nullable=False),
    comment="Append-only: triggers refuse update and delete",
)

shadow_rankings = sa.Table(
    "shadow_rankings",
    metadata,
    # Gone with its recommendation, whoever removes that: an erasure, the retention, a withdrawal.
    sa.Column(
        "recommendation_id",
        sa.String(36),
        sa.ForeignKey("recommendations.recommendation_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("adapter_version", sa.String(64), primary_key=True, comment="the candidate that ranked"),
    sa.Column("items", Json, nullable=False, comment="list of [item_id, score] in rank order"),
    sa.Column("created_at", UtcDateTime, nullable=False),
    comment="What a candidate would have recommended in place of what was",
)
