"""Who was erased, and when: no name, only a keyed hash, so that what is sent again later is known."""

import sqlalchemy as sa

from service.kit.db import BigInt, UtcDateTime, metadata

erasure_state = sa.Table(
    "erasure_state",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("salt", sa.LargeBinary(32), nullable=False, comment="key of the hashes; random, never shown"),
    sa.Column("erasures", BigInt, nullable=False, comment="how many there have been"),
    sa.Column("last_erased_at", UtcDateTime),
    sa.CheckConstraint("id = 1", name="single_row"),
    comment="One row at most; none before the first erasure or export",
)

erased_users = sa.Table(
    "erased_users",
    metadata,
    sa.Column("user_digest", sa.LargeBinary(32), primary_key=True, comment="HMAC-SHA-256 of the user id"),
    sa.Column("number", BigInt, nullable=False, comment="of the last erasure, as erasure_state counts them"),
    sa.Column("erased_at", UtcDateTime, nullable=False),
    sa.Column("refused_through", UtcDateTime, nullable=False, comment="events that occurred until then are refused"),
    comment="Kept for good (docs/decisions/0030)",
    sqlite_with_rowid=False,
)
