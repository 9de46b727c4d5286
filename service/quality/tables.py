"""What became of recommendations, counted. No row here is about a user: those counts stay when a user is erased."""

import sqlalchemy as sa

from service.kit.db import UtcDateTime, metadata

quality_buckets = sa.Table(
    "quality_buckets",
    metadata,
    sa.Column("bucket_start", UtcDateTime, primary_key=True, comment="of the time in which they were made; inclusive"),
    sa.Column(
        "model",
        sa.String(64),
        primary_key=True,
        comment="adapter version, id of a base that ranked alone, or popular",
    ),
    sa.Column("strategy", sa.String(16), primary_key=True),
    sa.Column("arm", sa.String(16), primary_key=True, comment="of an experiment; main without one"),
    sa.Column("bucket_end", UtcDateTime, nullable=False, comment="exclusive"),
    sa.Column("horizon_s", sa.Float(53), nullable=False, comment="seconds within which an event was credited"),
    sa.Column("shown", sa.BigInteger, nullable=False, comment="recommendations"),
    sa.Column("hits", sa.BigInteger, nullable=False, comment="of them, with at least one event credited"),
    sa.Column("gain", sa.Float(53), nullable=False, comment="sum of 1 / log2(rank + 1) over the items taken"),
    sa.Column("users", sa.BigInteger, nullable=False, comment="distinct ones within the bucket"),
    sa.Column("anonymous", sa.BigInteger, nullable=False, comment="recommendations for nobody"),
    sa.Column("shown_squares", sa.BigInteger, nullable=False, comment="sum over users of shown^2"),
    sa.Column("shown_hits", sa.BigInteger, nullable=False, comment="sum over users of shown * hits"),
    sa.Column("hit_squares", sa.BigInteger, nullable=False, comment="sum over users of hits^2"),
    sa.Column("items", sa.BigInteger, nullable=False, comment="places in the lists"),
    sa.Column("distinct_items", sa.BigInteger, nullable=False),
    sa.Column("item_sketch", sa.LargeBinary, nullable=False, comment="HyperLogLog of the items: one byte a register"),
    sa.Column(
        "catalogue", sa.BigInteger, nullable=False, comment="items that could be recommended when they were counted"
    ),
    sa.Column("novelty", sa.Float(53), nullable=False, comment="sum of -log2 of the items' share of all interactions"),
    sa.Column("novelty_items", sa.BigInteger, nullable=False, comment="places that novelty sums over"),
    sa.Column("repeated", sa.BigInteger, nullable=False, comment="places whose item the previous list had as well"),
    sa.Column("repeatable", sa.BigInteger, nullable=False, comment="places in lists that had a previous one"),
    sa.Column("counted_at", UtcDateTime, nullable=False),
    comment="One row for each bucket of time and whatever ranked in it",
)

quality_state = sa.Table(
    "quality_state",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column(
        "counted_through", UtcDateTime, nullable=False, comment="recommendations made before it are in quality_buckets"
    ),
    sa.CheckConstraint("id = 1", name="single_row"),
    comment="One row at most; none before the first bucket",
)
