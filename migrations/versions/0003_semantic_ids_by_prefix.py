"""Taken semantic IDs and items without one are found by an index: a PUT does not read the whole catalogue."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

LOSES = ()

INDEX = "ix_items_base_id_code_0_code_1_code_2_code_3"


def upgrade() -> None:
    op.create_index(INDEX, "items", ["base_id", "code_0", "code_1", "code_2", "code_3"])


def downgrade() -> None:
    op.drop_index(INDEX, table_name="items")
