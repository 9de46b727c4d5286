"""The first schema."""

import sqlalchemy as sa
from alembic import op

from service.kit.db import BigInt, Json, UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

LOSES = ("everything",)

APPEND_ONLY = ("activations", "audit_log")


def upgrade() -> None:
    op.create_table(
        "activations",
        sa.Column("audit_id", sa.String(length=36), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False, comment="base, promote, rollback or window"),
        sa.Column("base_id", sa.String(length=64), nullable=False),
        sa.Column("from_version", sa.String(length=64), nullable=True),
        sa.Column("to_version", sa.String(length=64), nullable=True),
        sa.Column("window_id", sa.Integer(), nullable=True),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("idempotency_key", sa.String(length=128), nullable=True),
        sa.Column("request_hash", sa.String(length=64), nullable=True),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("audit_id", name=op.f("pk_activations")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_activations_idempotency_key")),
        sa.UniqueConstraint("revision", name=op.f("uq_activations_revision")),
        comment="Append-only: triggers refuse update and delete",
    )
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("scopes", Json, nullable=False, comment="list of read, write, admin"),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("expires_at", UtcDateTime, nullable=True),
        sa.Column("revoked_at", UtcDateTime, nullable=True),
        sa.Column("last_used_at", UtcDateTime, nullable=True),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_api_keys")),
    )
    op.create_table(
        "audit_log",
        sa.Column("audit_id", sa.String(length=36), nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False, comment="key:<key_id>, cli or updater"),
        sa.Column(
            "action", sa.String(length=64), nullable=False, comment="adapter.promote, key.create, window.close, ..."
        ),
        sa.Column("subject", sa.String(length=200), nullable=True),
        sa.Column("details", Json, nullable=True),
        sa.PrimaryKeyConstraint("audit_id", name=op.f("pk_audit_log")),
        comment="Append-only: triggers refuse update and delete",
    )
    with op.batch_alter_table("audit_log", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_audit_log_created_at"), ["created_at"], unique=False)

    op.create_table(
        "bases",
        sa.Column(
            "base_id", sa.String(length=64), nullable=False, comment="b- and 16 hex digits of the manifest's sha256"
        ),
        sa.Column("digest", sa.String(length=64), nullable=False, comment="sha256 of manifest.json"),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("trained_through", UtcDateTime, nullable=True, comment="newest event that the model has seen"),
        sa.Column("metrics", Json, nullable=False),
        sa.PrimaryKeyConstraint("base_id", name=op.f("pk_bases")),
    )
    op.create_table(
        "catalog_revision",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("revision", BigInt, nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_catalog_revision_single_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_catalog_revision")),
        comment="One row; locked by every catalogue write, so revisions commit in order",
    )
    op.create_table(
        "events",
        sa.Column("seq", BigInt, autoincrement=True, nullable=False),
        sa.Column("event_id", sa.String(length=128), nullable=False),
        sa.Column(
            "body_hash",
            sa.String(length=64),
            nullable=False,
            comment="sha256 of the canonical body: same id, other body is a conflict",
        ),
        sa.Column("user_id", sa.String(length=128), nullable=False),
        sa.Column(
            "item_id",
            sa.String(length=128),
            nullable=False,
            comment="not a foreign key: an event may come before its item",
        ),
        sa.Column("event_type", sa.String(length=32), nullable=False),
        sa.Column("occurred_at", UtcDateTime, nullable=False),
        sa.Column("received_at", UtcDateTime, nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("recommendation_id", sa.String(length=36), nullable=True),
        sa.Column("position", sa.Integer(), nullable=True),
        sa.Column("properties", Json, nullable=True),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_events")),
        sa.UniqueConstraint("event_id", name=op.f("uq_events_event_id")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_events_recommendation_id"),
            ["recommendation_id"],
            unique=False,
            postgresql_where=sa.text("recommendation_id IS NOT NULL"),
            sqlite_where=sa.text("recommendation_id IS NOT NULL"),
        )
        batch_op.create_index(
            batch_op.f("ix_events_user_id_occurred_at_seq"), ["user_id", "occurred_at", "seq"], unique=False
        )

    op.create_table(
        "items",
        sa.Column("item_id", sa.String(length=128), nullable=False),
        sa.Column("title", sa.String(length=1000), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("categories", Json, nullable=False, comment="list of strings"),
        sa.Column("brand", sa.String(length=300), nullable=True),
        sa.Column("available", sa.Boolean(), nullable=False),
        sa.Column("deleted_at", UtcDateTime, nullable=True, comment="hidden at once, kept for training"),
        sa.Column(
            "base_id",
            sa.String(length=64),
            nullable=True,
            comment="the base whose codec gave the codes; null: not encoded yet",
        ),
        sa.Column("code_0", sa.SmallInteger(), nullable=True),
        sa.Column("code_1", sa.SmallInteger(), nullable=True),
        sa.Column("code_2", sa.SmallInteger(), nullable=True),
        sa.Column("code_3", sa.SmallInteger(), nullable=True),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("updated_at", UtcDateTime, nullable=False),
        sa.Column(
            "revision",
            BigInt,
            nullable=False,
            comment="the catalogue revision that last touched the row; replicas follow it",
        ),
        sa.PrimaryKeyConstraint("item_id", name=op.f("pk_items")),
    )
    with op.batch_alter_table("items", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_items_revision"), ["revision"], unique=False)

    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=128), nullable=False),
        sa.Column("fence", BigInt, nullable=False, comment="grows by one with every new holder"),
        sa.Column("expires_at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.create_table(
        "recommendations",
        sa.Column("recommendation_id", sa.String(length=36), nullable=False),
        sa.Column("user_id", sa.String(length=128), nullable=True),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("strategy", sa.String(length=16), nullable=False),
        sa.Column("fallback_reason", sa.String(length=64), nullable=True),
        sa.Column("base_id", sa.String(length=64), nullable=True),
        sa.Column("adapter_version", sa.String(length=64), nullable=True),
        sa.Column("catalog_revision", sa.BigInteger(), nullable=False),
        sa.Column("history", Json, nullable=False, comment="the item ids that the prompt held, oldest first"),
        sa.Column("items", Json, nullable=False, comment="list of [item_id, score] in rank order"),
        sa.PrimaryKeyConstraint("recommendation_id", name=op.f("pk_recommendations")),
    )
    with op.batch_alter_table("recommendations", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_recommendations_user_id_created_at"), ["user_id", "created_at"], unique=False
        )

    op.create_table(
        "windows",
        sa.Column("window_id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column(
            "after_seq", BigInt, nullable=False, comment="exclusive lower end; the previous window's through_seq"
        ),
        sa.Column("through_seq", BigInt, nullable=False, comment="inclusive upper end"),
        sa.Column("events", sa.Integer(), nullable=False, comment="rows in the range when it was sealed"),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("sealed_at", UtcDateTime, nullable=False),
        sa.Column("sealed_because", sa.String(length=16), nullable=False, comment="age, count, manual or base"),
        sa.Column("lease_fence", BigInt, nullable=True, comment="fence of the updater that works on it"),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("started_at", UtcDateTime, nullable=True),
        sa.Column("finished_at", UtcDateTime, nullable=True),
        sa.Column("method", sa.String(length=64), nullable=True),
        sa.Column("base_id", sa.String(length=64), nullable=True),
        sa.Column("incumbent_version", sa.String(length=64), nullable=True),
        sa.Column("candidate_version", sa.String(length=64), nullable=True),
        sa.Column(
            "verdict", sa.String(length=16), nullable=True, comment="promoted, refused, no_change, skipped, failed"
        ),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column(
            "steps", Json, nullable=True, comment="list of {step, seconds, ...}: duration and outcome of each step"
        ),
        sa.Column("statistics", Json, nullable=True, comment="users, examples, losses, gradient ratio"),
        sa.CheckConstraint("through_seq >= after_seq", name=op.f("ck_windows_ordered")),
        sa.PrimaryKeyConstraint("window_id", name=op.f("pk_windows")),
        sa.UniqueConstraint("after_seq", name=op.f("uq_windows_after_seq")),
        sa.UniqueConstraint("through_seq", name=op.f("uq_windows_through_seq")),
    )
    op.create_table(
        "adapters",
        sa.Column("adapter_version", sa.String(length=64), nullable=False),
        sa.Column("base_id", sa.String(length=64), nullable=False),
        sa.Column("parent_version", sa.String(length=64), nullable=True),
        sa.Column("window_id", sa.Integer(), nullable=True, comment="a window yields at most one adapter"),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False, comment="sha256 of manifest.json"),
        sa.Column("method", sa.String(length=64), nullable=False),
        sa.Column("hyperparameters", Json, nullable=False),
        sa.Column("metrics", Json, nullable=False),
        sa.Column("trained_through", UtcDateTime, nullable=True),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.ForeignKeyConstraint(["base_id"], ["bases.base_id"], name=op.f("fk_adapters_base_id")),
        sa.ForeignKeyConstraint(["window_id"], ["windows.window_id"], name=op.f("fk_adapters_window_id")),
        sa.PrimaryKeyConstraint("adapter_version", name=op.f("pk_adapters")),
        sa.UniqueConstraint("window_id", name=op.f("uq_adapters_window_id")),
    )
    op.create_table(
        "evaluations",
        sa.Column("evaluation_id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("window_id", sa.Integer(), nullable=False),
        sa.Column("subject", sa.String(length=16), nullable=False, comment="candidate, incumbent, base or popularity"),
        sa.Column("adapter_version", sa.String(length=64), nullable=True),
        sa.Column("users", sa.Integer(), nullable=False),
        sa.Column("hit_5", sa.Float(), nullable=False),
        sa.Column("hit_10", sa.Float(), nullable=False),
        sa.Column("ndcg_5", sa.Float(), nullable=False),
        sa.Column("ndcg_10", sa.Float(), nullable=False),
        sa.Column("comparison", Json, nullable=True, comment="candidate against incumbent: difference and interval"),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.ForeignKeyConstraint(["window_id"], ["windows.window_id"], name=op.f("fk_evaluations_window_id")),
        sa.PrimaryKeyConstraint("evaluation_id", name=op.f("pk_evaluations")),
        sa.UniqueConstraint("window_id", "subject", name=op.f("uq_evaluations_window_id_subject")),
    )
    op.create_table(
        "active_adapter",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("base_id", sa.String(length=64), nullable=True),
        sa.Column("adapter_version", sa.String(length=64), nullable=True),
        sa.CheckConstraint("id = 1", name=op.f("ck_active_adapter_single_row")),
        sa.ForeignKeyConstraint(
            ["adapter_version"], ["adapters.adapter_version"], name=op.f("fk_active_adapter_adapter_version")
        ),
        sa.ForeignKeyConstraint(["base_id"], ["bases.base_id"], name=op.f("fk_active_adapter_base_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_active_adapter")),
        comment="One row: what every replica serves",
    )

    op.execute("INSERT INTO catalog_revision (id, revision) VALUES (1, 0)")
    op.execute("INSERT INTO active_adapter (id, revision) VALUES (1, 0)")
    for table in APPEND_ONLY:
        _refuse_changes(table)


def _refuse_changes(table: str) -> None:
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
    else:
        op.execute(
            f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
        )
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION {table}_append_only()"
        )


def downgrade() -> None:
    for table in APPEND_ONLY:
        if op.get_bind().dialect.name == "postgresql":
            op.execute(f"DROP FUNCTION {table}_append_only CASCADE")
    op.drop_table("active_adapter")
    op.drop_table("evaluations")
    op.drop_table("adapters")
    op.drop_table("windows")
    with op.batch_alter_table("recommendations", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_recommendations_user_id_created_at"))

    op.drop_table("recommendations")
    op.drop_table("leases")
    with op.batch_alter_table("items", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_items_revision"))

    op.drop_table("items")
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_events_user_id_occurred_at_seq"))
        batch_op.drop_index(
            batch_op.f("ix_events_recommendation_id"),
            postgresql_where=sa.text("recommendation_id IS NOT NULL"),
            sqlite_where=sa.text("recommendation_id IS NOT NULL"),
        )

    op.drop_table("events")
    op.drop_table("catalog_revision")
    op.drop_table("bases")
    with op.batch_alter_table("audit_log", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_audit_log_created_at"))

    op.drop_table("audit_log")
    op.drop_table("api_keys")
    op.drop_table("activations")
