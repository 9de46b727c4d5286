"""Replicas say what they serve; bases remember that their files were removed."""

import sqlalchemy as sa
from alembic import op

from service.kit.db import UtcDateTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

LOSES = ("adapters.state", "bases.collected_at", "replicas")


def upgrade() -> None:
    op.create_table(
        "replicas",
        sa.Column(
            "replica_id", sa.String(length=36), nullable=False, comment="of one process, from its start to its end"
        ),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("process", sa.Integer(), nullable=False),
        sa.Column("started_at", UtcDateTime, nullable=False),
        sa.Column("seen_at", UtcDateTime, nullable=False),
        sa.Column("revision", sa.Integer(), comment="of the pointer, the newest that was acted upon"),
        sa.Column("base_id", sa.String(length=64), comment="serves; null: nothing yet"),
        sa.Column("adapter_version", sa.String(length=64), comment="serves; null: the base alone"),
        sa.Column(
            "wanted_base_id", sa.String(length=64), comment="what the pointer names, where that is something else"
        ),
        sa.Column("wanted_version", sa.String(length=64)),
        sa.Column("degraded", sa.Text(), comment="why it serves something else than the pointer names"),
        sa.PrimaryKeyConstraint("replica_id", name=op.f("pk_replicas")),
        comment="Written by each replica every few seconds; its row goes when it stops",
    )
    op.add_column("bases", sa.Column("collected_at", UtcDateTime, comment="when garbage collection removed its files"))


def downgrade() -> None:
    # An earlier version knows no collected adapters; what it knows of files that are not as they were is "corrupt".
    op.execute("UPDATE adapters SET state = 'corrupt' WHERE state = 'collected'")
    op.drop_column("bases", "collected_at")
    op.drop_table("replicas")
