"""A user's past is read from an index alone; popularity is kept between updates."""

import sqlalchemy as sa
from alembic import op

from service.kit.db import BigInt, Json

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

LOSES = ("item_popularity", "popularity_state")

# By name and without a batch: on SQLite a batch may copy the table, and an index needs no more than this.
OLD_INDEX, OLD_COLUMNS = "ix_events_user_id_occurred_at_seq", ["user_id", "occurred_at", "seq"]
NEW_INDEX = "ix_events_user_id_occurred_at_seq_item_id_event_type"
NEW_COLUMNS = [*OLD_COLUMNS, "item_id", "event_type"]


def upgrade() -> None:
    op.create_index(NEW_INDEX, "events", NEW_COLUMNS)
    op.drop_index(OLD_INDEX, table_name="events")
    op.create_table(
        "item_popularity",
        sa.Column("item_id", sa.String(length=128), nullable=False),
        sa.Column(
            "log2_weight",
            sa.Float(53),
            nullable=False,
            comment="log2 of the sum of 2^(occurred_at / half-life), both in seconds, over the item's interactions",
        ),
        sa.PrimaryKeyConstraint("item_id", name=op.f("pk_item_popularity")),
        comment="What the updater has counted, so that an update reads only what is new",
    )
    op.create_table(
        "popularity_state",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("through_seq", BigInt, nullable=False, comment="the last event that item_popularity counts"),
        sa.Column("half_life_s", sa.Float(53), nullable=False),
        sa.Column("ignored_types", Json, nullable=False, comment="sorted list: event types that were not counted"),
        sa.CheckConstraint("id = 1", name=op.f("ck_popularity_state_single_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_popularity_state")),
        comment="One row at most; none before the first count. Another half-life or other types: counted anew",
    )


def downgrade() -> None:
    op.drop_table("popularity_state")
    op.drop_table("item_popularity")
    op.create_index(OLD_INDEX, "events", OLD_COLUMNS)
    op.drop_index(NEW_INDEX, table_name="events")
