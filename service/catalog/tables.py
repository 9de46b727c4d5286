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
    sa.Column(
        "history_since",
        BigInt,
        nullable=False,
        server_default="0",
        comment="the oldest revision that item_history can still show",
    ),
    sa.CheckConstraint("id = 1", name="single_row"),
    comment="One row; locked by every catalogue write, so revisions commit in order",
)

item_history = sa.Table(
    "item_history",
    metadata,
    sa.Column("item_id", sa.String(128), primary_key=True),
    sa.Column(
        "revision",
        BigInt,
        primary_key=True,
        autoincrement=False,
        comment="the catalogue revision from which the item was so",
    ),
    sa.Column("until_revision", BigInt, nullable=False, comment="the one that replaced it; it is not so any more then"),
    sa.Column("replaced_at", UtcDateTime, nullable=False, comment="by the store's clock; retention asks"),
    sa.Column("title", sa.String(1000), nullable=False),
    sa.Column("categories", Json, nullable=False, comment="list of strings"),
    sa.Column("brand", sa.String(300)),
    sa.Column("servable", sa.Boolean, nullable=False, comment="available and not deleted"),
    sa.Column("base_id", sa.String(64)),
    *(sa.Column(f"code_{level}", sa.SmallInteger) for level in range(4)),
    sa.Index(None, "until_revision"),
    comment="What items were before their last change, as far as ranking saw them; items holds the present (0035)",
    sqlite_with_rowid=False,
)
