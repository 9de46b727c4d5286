"""SQL of the dashboard's sessions."""

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from service.dashboard.schemas import Session
from service.dashboard.tables import dashboard_sessions


def insert(connection: Connection, digest: str, session: Session) -> None:
    values = {"key_id": session.key_id, "created_at": session.created_at, "seen_at": session.seen_at}
    connection.execute(dashboard_sessions.insert().values(digest=digest, **values))


def find(connection: Connection, digest: str) -> Session | None:
    query = sa.select(dashboard_sessions.c.key_id, dashboard_sessions.c.created_at, dashboard_sessions.c.seen_at).where(
        dashboard_sessions.c.digest == digest
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else Session(*row)


def touch(connection: Connection, digest: str, now: datetime) -> None:
    """Note that a session was used."""
    connection.execute(dashboard_sessions.update().where(dashboard_sessions.c.digest == digest).values(seen_at=now))


def delete(connection: Connection, digest: str) -> bool:
    """Whether there was such a session."""
    gone = connection.execute(dashboard_sessions.delete().where(dashboard_sessions.c.digest == digest))
    return gone.rowcount == 1


def delete_ended(connection: Connection, *, created_before: datetime, seen_before: datetime) -> None:
    ended = sa.or_(dashboard_sessions.c.created_at <= created_before, dashboard_sessions.c.seen_at <= seen_before)
    connection.execute(dashboard_sessions.delete().where(ended))


def delete_beyond(connection: Connection, key_id: str, keep: int) -> None:
    """Delete all but the `keep` newest sessions of a key."""
    newest = (
        sa.select(dashboard_sessions.c.digest)
        .where(dashboard_sessions.c.key_id == key_id)
        .order_by(dashboard_sessions.c.created_at.desc(), dashboard_sessions.c.digest)
        .limit(keep)
    )
    others = sa.and_(dashboard_sessions.c.key_id == key_id, dashboard_sessions.c.digest.not_in(newest))
    connection.execute(dashboard_sessions.delete().where(others))
