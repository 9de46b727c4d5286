"""What became of recommendations, counted by what ranked them and when."""

import sqlalchemy as sa
from alembic import op

from service.kit.db import UtcDateTime

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

LOSES = ("quality_buckets", "quality_state")


def upgrade() -> None:
    op.create_table(
        "quality_buckets",
        sa.Column(
            "bucket_start", UtcDateTime, nullable=False, comment="of the time in which they were made; inclusive"
        ),
        sa.Column(
            "model",
            sa.String(length=64),
            nullable=False,
            comment="adapter version, id of a base that ranked alone, or popular",
        ),
        sa.Column("strategy", sa.String(length=16), nullable=False),
        sa.Column("arm", sa.String(length=16), nullable=False, comment="of an experiment; main without one"),
        sa.Column("bucket_end", UtcDateTime, nullable=False, comment="exclusive"),
        sa.Column("horizon_s", sa.Float(53), nullable=False, comment="seconds within which an event was credited"),
        sa.Column("shown", sa.BigInteger(), nullable=False, comment="recommendations"),
        sa.Column("hits", sa.BigInteger(), nullable=False, comment="of them, with at least one event credited"),
        sa.Column("gain", sa.Float(53), nullable=False, comment="sum of 1 / log2(rank + 1) over the items taken"),
        sa.Column("users", sa.BigInteger(), nullable=False, comment="distinct ones within the bucket"),
        sa.Column("anonymous", sa.BigInteger(), nullable=False, comment="recommendations for nobody"),
        sa.Column("shown_squares", sa.BigInteger(), nullable=False, comment="sum over users of shown^2"),
        sa.Column("shown_hits", sa.BigInteger(), nullable=False, comment="sum over users of shown * hits"),
        sa.Column("hit_squares", sa.BigInteger(), nullable=False, comment="sum over users of hits^2"),
        sa.Column("items", sa.BigInteger(), nullable=False, comment="places in the lists"),
        sa.Column("distinct_items", sa.BigInteger(), nullable=False),
        sa.Column(
            "item_sketch", sa.LargeBinary(), nullable=False, comment="HyperLogLog of the items: one byte a register"
        ),
        sa.Column(
            "catalogue",
            sa.BigInteger(),
            nullable=False,
            comment="items that could be recommended when they were counted",
        ),
        sa.Column(
            "novelty", sa.Float(53), nullable=False, comment="sum of -log2 of the items' share of all interactions"
        ),
        sa.Column("novelty_items", sa.BigInteger(), nullable=False, comment="places that novelty sums over"),
        sa.Column(
            "repeated", sa.BigInteger(), nullable=False, comment="places whose item the previous list had as well"
        ),
        sa.Column("repeatable", sa.BigInteger(), nullable=False, comment="places in lists that had a previous one"),
        sa.Column("counted_at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("bucket_start", "model", "strategy", "arm", name=op.f("pk_quality_buckets")),
        comment="One row for each bucket of time and whatever ranked in it",
    )
    op.create_table(
        "quality_state",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column(
            "counted_through",
            UtcDateTime,
            nullable=False,
            comment="recommendations made before it are in quality_buckets",
        ),
        sa.CheckConstraint("id = 1", name=op.f("ck_quality_state_single_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quality_state")),
        comment="One row at most; none before the first bucket",
    )


def downgrade() -> None:
    op.drop_table("quality_state")
    op.drop_table("quality_buckets")
