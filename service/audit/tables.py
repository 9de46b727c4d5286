"""Who did what as an admin; append-only."""

import sqlalchemy as sa

from service.kit.db import Json, UtcDateTime, metadata

audit_log = sa.Table(
    "audit_log",
    metadata,
    sa.Column("audit_id", sa.String(36), primary_key=True),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("actor", sa.String(128), nullable=False, comment="key:<key_id>, cli or updater"),
    sa.Column("action", sa.String(64), nullable=False, comment="adapter.promote, key.create, window.close, ..."),
    sa.Column("subject", sa.String(200)),
    sa.Column("details", Json),
    sa.Column("request_id", sa.String(64), comment="of the request that did it"),
    sa.Index(None, "created_at"),
    comment="Append-only: triggers refuse update and delete",
)
