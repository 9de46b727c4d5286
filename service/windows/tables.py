"""Windows of the event stream and what came of each."""

import sqlalchemy as sa

from service.kit.db import BigInt, Json, UtcDateTime, metadata

windows = sa.Table(
    "windows",
    metadata,
    sa.Column("window_id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column(
        "after_seq",
        BigInt,
        nullable=False,
        unique=True,
        comment="exclusive lower end; the previous window's through_seq",
    ),
    sa.Column("through_seq", BigInt, nullable=False, unique=True, comment="inclusive upper end"),
    sa.Column("events", sa.Integer, nullable=False, comment="rows in the range when it was sealed"),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("sealed_at", UtcDateTime, nullable=False),
    sa.Column("sealed_because", sa.String(16), nullable=False, comment="age, count, manual or base"),
    sa.Column("lease_fence", BigInt, comment="fence of the updater that works on it"),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("started_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime),
    sa.Column("method", sa.String(64)),
    sa.Column("base_id", sa.String(64)),
    sa.Column("incumbent_version", sa.String(64)),
    sa.Column("candidate_version", sa.String(64)),
    sa.Column("verdict", sa.String(16), comment="promoted, refused, no_change, skipped, failed"),
    sa.Column("reason", sa.Text),
    sa.Column("steps", Json, comment="list of {step, seconds, ...}: duration and outcome of each step"),
    sa.Column("statistics", Json, comment="users, examples, losses, gradient ratio"),
    sa.CheckConstraint("through_seq >= after_seq", name="ordered"),
)

evaluations = sa.Table(
    "evaluations",
    metadata,
    sa.Column("evaluation_id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("window_id", sa.Integer, sa.ForeignKey("windows.window_id"), nullable=False),
    sa.Column("subject", sa.String(16), nullable=False, comment="candidate, incumbent, base or popularity"),
    sa.Column("adapter_version", sa.String(64)),
    sa.Column("users", sa.Integer, nullable=False),
    sa.Column("hit_5", sa.Float, nullable=False),
    sa.Column("hit_10", sa.Float, nullable=False),
    sa.Column("ndcg_5", sa.Float, nullable=False),
    sa.Column("ndcg_10", sa.Float, nullable=False),
    sa.Column("comparison", Json, comment="candidate against incumbent: difference and interval"),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.UniqueConstraint("window_id", "subject"),
)
