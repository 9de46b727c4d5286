"""The processes that serve, and what each of them serves."""

import sqlalchemy as sa

from service.kit.db import UtcDateTime, metadata

replicas = sa.Table(
    "replicas",
    metadata,
    sa.Column("replica_id", sa.String(36), primary_key=True, comment="of one process, from its start to its end"),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("process", sa.Integer, nullable=False),
    sa.Column("started_at", UtcDateTime, nullable=False),
    sa.Column("seen_at", UtcDateTime, nullable=False),
    sa.Column("revision", sa.Integer, comment="of the pointer, the newest that was acted upon"),
    sa.Column("base_id", sa.String(64), comment="serves; null: nothing yet"),
    sa.Column("adapter_version", sa.String(64), comment="serves; null: the base alone"),
    sa.Column("wanted_base_id", sa.String(64), comment="what the pointer names, where that is something else"),
    sa.Column("wanted_version", sa.String(64)),
    sa.Column("degraded", sa.Text, comment="why it serves something else than the pointer names"),
    sa.Column("trial_version", sa.String(64), comment="the candidate of a trial that it holds"),
    sa.Column("trial_trouble", sa.Text, comment="why it does not hold it"),
    comment="Written by each replica every few seconds; its row goes when it stops",
)
