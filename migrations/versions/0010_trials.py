"""Trials of a candidate beside the active adapter: their history, the arm of a recommendation, shadow rankings."""

import sqlalchemy as sa
from alembic import op

from service.kit.db import Json, UtcDateTime

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

LOSES = (
    "recommendations.arm",
    "replicas.trial_trouble",
    "replicas.trial_version",
    "shadow_rankings",
    "trial_moves",
)


def upgrade() -> None:
    op.add_column(
        "recommendations",
        sa.Column("arm", sa.String(length=8), comment="control or canary: the user's arm then; null: no canary"),
    )
    op.add_column(
        "replicas", sa.Column("trial_version", sa.String(length=64), comment="the candidate of a trial that it holds")
    )
    op.add_column("replicas", sa.Column("trial_trouble", sa.Text(), comment="why it does not hold it"))
    op.create_table(
        "trial_moves",
        sa.Column("audit_id", sa.String(length=36), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False, comment="1, 2, ..; the highest is the present"),
        sa.Column("deed", sa.String(length=16), nullable=False, comment="start, change or end"),
        sa.Column("adapter_version", sa.String(length=64), nullable=False),
        sa.Column("base_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False, comment="shadow or canary"),
        sa.Column("share", sa.Float(), nullable=False, comment="of users, above 0 and up to 1"),
        sa.Column("salt", sa.String(length=64), nullable=False, comment="of the hash that picks users"),
        sa.Column("started_at", UtcDateTime, nullable=False),
        sa.Column("ends_at", UtcDateTime, comment="null: when somebody ends it"),
        sa.Column("because", sa.String(length=16), comment="why it ended"),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("idempotency_key", sa.String(length=128)),
        sa.Column("request_hash", sa.String(length=64)),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_version"], ["adapters.adapter_version"], name=op.f("fk_trial_moves_adapter_version")
        ),
        sa.PrimaryKeyConstraint("audit_id", name=op.f("pk_trial_moves")),
        sa.UniqueConstraint("revision", name=op.f("uq_trial_moves_revision")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_trial_moves_idempotency_key")),
        comment="Append-only: triggers refuse update and delete",
    )
    op.create_table(
        "shadow_rankings",
        sa.Column("recommendation_id", sa.String(length=36), nullable=False),
        sa.Column("adapter_version", sa.String(length=64), nullable=False, comment="the candidate that ranked"),
        sa.Column("items", Json, nullable=False, comment="list of [item_id, score] in rank order"),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.ForeignKeyConstraint(
            ["recommendation_id"],
            ["recommendations.recommendation_id"],
            name=op.f("fk_shadow_rankings_recommendation_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("recommendation_id", "adapter_version", name=op.f("pk_shadow_rankings")),
        comment="What a candidate would have recommended in place of what was",
    )
    if op.get_bind().dialect.name == "sqlite":
        for deed in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER trial_moves_no_{deed.lower()} BEFORE {deed} ON trial_moves "
                "BEGIN SELECT RAISE(ABORT, 'trial_moves is append-only'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION trial_moves_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'trial_moves is append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER trial_moves_append_only BEFORE UPDATE OR DELETE ON trial_moves "
        "FOR EACH ROW EXECUTE FUNCTION trial_moves_append_only()"
    )


def downgrade() -> None:
    op.drop_table("shadow_rankings")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION trial_moves_append_only CASCADE")
    op.drop_table("trial_moves")
    op.drop_column("replicas", "trial_trouble")
    op.drop_column("replicas", "trial_version")
    op.drop_column("recommendations", "arm")
