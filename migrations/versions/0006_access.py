"""Keys remember what they were rotated to, the audit log its requests; sessions of the dashboard."""

import sqlalchemy as sa
from alembic import op

from service.kit.db import UtcDateTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

LOSES = ("api_keys.replaced_by", "audit_log.request_id", "dashboard_sessions")


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("replaced_by", sa.String(length=32), comment="the key that it was rotated to"))
    op.add_column("audit_log", sa.Column("request_id", sa.String(length=64), comment="of the request that did it"))
    op.create_table(
        "dashboard_sessions",
        sa.Column("digest", sa.String(length=64), nullable=False, comment="SHA-256 of the cookie"),
        sa.Column("key_id", sa.String(length=32), nullable=False, comment="the key that it was opened with"),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("seen_at", UtcDateTime, nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.key_id"], name=op.f("fk_dashboard_sessions_key_id")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_dashboard_sessions")),
        comment="Rows of ended sessions go with the next login",
    )
    op.create_index(op.f("ix_dashboard_sessions_key_id"), "dashboard_sessions", ["key_id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_dashboard_sessions_key_id"), table_name="dashboard_sessions")
    op.drop_table("dashboard_sessions")
    op.drop_column("audit_log", "request_id")
    op.drop_column("api_keys", "replaced_by")
