"""Bases, adapters, the one active pointer and its append-only history."""

import sqlalchemy as sa

from service.kit.db import Json, UtcDateTime, metadata

bases = sa.Table(
    "bases",
    metadata,
    sa.Column("base_id", sa.String(64), primary_key=True, comment="b- and 16 hex digits of the manifest's sha256"),
    sa.Column("digest", sa.String(64), nullable=False, comment="sha256 of manifest.json"),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("trained_through", UtcDateTime, comment="newest event that the model has seen"),
    sa.Column("metrics", Json, nullable=False),
    sa.Column("collected_at", UtcDateTime, comment="when garbage collection removed its files"),
)

adapters = sa.Table(
    "adapters",
    metadata,
    sa.Column("adapter_version", sa.String(64), primary_key=True),
    sa.Column("base_id", sa.String(64), sa.ForeignKey("bases.base_id"), nullable=False),
    sa.Column("parent_version", sa.String(64)),
    sa.Column(
        "window_id",
        sa.Integer,
        sa.ForeignKey("windows.window_id"),
        unique=True,
        comment="a window yields at most one adapter",
    ),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False, comment="sha256 of manifest.json"),
    sa.Column("method", sa.String(64), nullable=False),
    sa.Column("hyperparameters", Json, nullable=False),
    sa.Column("metrics", Json, nullable=False),
    sa.Column("trained_through", UtcDateTime),
    sa.Column("created_at", UtcDateTime, nullable=False),
)

active_adapter = sa.Table(
    "active_adapter",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("base_id", sa.String(64), sa.ForeignKey("bases.base_id")),
    sa.Column("adapter_version", sa.String(64), sa.ForeignKey("adapters.adapter_version")),
    sa.CheckConstraint("id = 1", name="single_row"),
    comment="One row: what every replica serves",
)

activations = sa.Table(
    "activations",
    metadata,
    sa.Column("audit_id", sa.String(36), primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False, unique=True),
    sa.Column("action", sa.String(16), nullable=False, comment="base, promote, rollback or window"),
    sa.Column("base_id", sa.String(64), nullable=False),
    sa.Column("from_version", sa.String(64)),
    sa.Column("to_version", sa.String(64)),
    sa.Column("window_id", sa.Integer),
    sa.Column("actor", sa.String(128), nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("idempotency_key", sa.String(128), unique=True),
    sa.Column("request_hash", sa.String(64)),
    sa.Column("created_at", UtcDateTime, nullable=False),
    comment="Append-only: triggers refuse update and delete",
)
