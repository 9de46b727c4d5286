"""Items and their codes."""

import sqlalchemy as sa

from service.kit.db import BigInt, Json, UtcDateTime, metadata

items = sa.Table(
    "items",
    metadata,
    sa.Column("item_id", sa.String(128), primary_key=True),
    sa.Column("title", sa.String(1000), nullable=False),
    sa.Column("description", sa.Text),
    sa.Column("categories", Json, nullable=False, comment="list of strings"),
    sa.Column("brand", sa.String(300)),
    sa.Column("available", sa.Boolean, nullable=False),
    sa.Column("deleted_at", UtcDateTime, comment="hidden at once, kept for training"),
    sa.Column("base_id", sa.String(64), comment="the base whose codec gave the codes; null: not encoded yet"),
    sa.Column("code_0", sa.SmallInteger),
    sa.Column("code_1", sa.SmallInteger),
    sa.Column("code_2", sa.SmallInteger),
    sa.Column("code_3", sa.SmallInteger),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Column(
        "revision",
        BigInt,
        nullable=False,
        comment="the catalogue revision that last touched the row; replicas follow it",
    ),
    sa.Index(None, "revision"),
    sa.Index(None, "base_id", "code_0", "code_1", "code_2", "code_3"),
)

catalog_revision = sa.Table(
    "catalog_revision",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("revision", BigInt, nullable=False),
    sa.CheckConstraint("id = 1", name="single_row"),
    comment="One row; locked by every catalogue write, so revisions commit in order",
)
