"""What a recommendation depended on is kept, and what items were before their last change."""

import sqlalchemy as sa
from alembic import op

from service.kit.db import BigInt, Json, UtcDateTime

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

LOSES = (  # catalog_revision.history_since comes back as the revision of that moment: what was before is gone
    "item_history",
    "recommendation_settings",
    "recommendations.computed",
    "recommendations.request",
    "recommendations.settings_id",
)


def upgrade() -> None:
    op.create_table(
        "item_history",
        sa.Column("item_id", sa.String(length=128), nullable=False),
        sa.Column(
            "revision",
            BigInt,
            nullable=False,
            autoincrement=False,
            comment="the catalogue revision from which the item was so",
        ),
        sa.Column(
            "until_revision", BigInt, nullable=False, comment="the one that replaced it; it is not so any more then"
        ),
        sa.Column("replaced_at", UtcDateTime, nullable=False, comment="by the store's clock; retention asks"),
        sa.Column("title", sa.String(length=1000), nullable=False),
        sa.Column("categories", Json, nullable=False, comment="list of strings"),
        sa.Column("brand", sa.String(length=300)),
        sa.Column("servable", sa.Boolean(), nullable=False, comment="available and not deleted"),
        sa.Column("base_id", sa.String(length=64)),
        *(sa.Column(f"code_{level}", sa.SmallInteger()) for level in range(4)),
        sa.PrimaryKeyConstraint("item_id", "revision", name=op.f("pk_item_history")),
        comment="What items were before their last change, as far as ranking saw them; items holds the present (0035)",
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_item_history_until_revision"), "item_history", ["until_revision"])
    op.add_column(
        "catalog_revision",
        sa.Column(
            "history_since",
            BigInt,
            nullable=False,
            server_default="0",
            comment="the oldest revision that item_history can still show",
        ),
    )
    op.execute("UPDATE catalog_revision SET history_since = revision")  # what was before is not known
    op.create_table(
        "recommendation_settings",
        sa.Column("settings_id", sa.String(length=16), nullable=False, comment="16 hex digits of the details' BLAKE2b"),
        sa.Column("details", Json, nullable=False, comment="settings, engine, device, threads that shape a reply"),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("settings_id", name=op.f("pk_recommendation_settings")),
        comment="One row for each way in which replies were computed; few",
    )
    asked = "what was asked for: fields that differ from their defaults, and the limit"
    else_ = "what else the reply depended on (docs/time-travel.md): past, popular, batch, copied_from"
    op.add_column("recommendations", sa.Column("request", Json, comment=asked))
    op.add_column("recommendations", sa.Column("computed", Json, comment=else_))
    op.add_column("recommendations", sa.Column("settings_id", sa.String(16), comment="of recommendation_settings"))


def downgrade() -> None:
    for name in ("settings_id", "computed", "request"):
        op.drop_column("recommendations", name)
    op.drop_table("recommendation_settings")
    op.drop_column("catalog_revision", "history_since")
    op.drop_index(op.f("ix_item_history_until_revision"), table_name="item_history")
    op.drop_table("item_history")
