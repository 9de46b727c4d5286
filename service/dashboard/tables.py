"""Sessions of the dashboard: only digests of their cookies are kept."""

import sqlalchemy as sa

from service.kit.db import UtcDateTime, metadata

dashboard_sessions = sa.Table(
    "dashboard_sessions",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True, comment="SHA-256 of the cookie"),
    sa.Column("key_id", sa.ForeignKey("api_keys.key_id"), nullable=False, comment="the key that it was opened with"),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("seen_at", UtcDateTime, nullable=False),
    sa.Index(None, "key_id"),
    comment="Rows of ended sessions go with the next login",
)
