"""Who was erased, so that what is sent again later is known."""

import sqlalchemy as sa
from alembic import op

from service.kit.db import BigInt, UtcDateTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

LOSES = ("erased_users", "erasure_state")


def upgrade() -> None:
    op.create_table(
        "erasure_state",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("salt", sa.LargeBinary(32), nullable=False, comment="key of the hashes; random, never shown"),
        sa.Column("erasures", BigInt, nullable=False, comment="how many there have been"),
        sa.Column("last_erased_at", UtcDateTime),
        sa.CheckConstraint("id = 1", name=op.f("ck_erasure_state_single_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_erasure_state")),
        comment="One row at most; none before the first erasure or export",
    )
    op.create_table(
        "erased_users",
        sa.Column("user_digest", sa.LargeBinary(32), nullable=False, comment="HMAC-SHA-256 of the user id"),
        sa.Column("number", BigInt, nullable=False, comment="of the last erasure, as erasure_state counts them"),
        sa.Column("erased_at", UtcDateTime, nullable=False),
        sa.Column(
            "refused_through", UtcDateTime, nullable=False, comment="events that occurred until then are refused"
        ),
        sa.PrimaryKeyConstraint("user_digest", name=op.f("pk_erased_users")),
        comment="Kept for good (docs/decisions/0030)",
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    # An earlier version takes what is sent again of an erased user.
    op.drop_table("erased_users")
    op.drop_table("erasure_state")
