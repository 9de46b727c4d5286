"""SQL of API keys."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from service.access.schemas import ApiKey, Scope
from service.access.tables import api_keys


def insert(connection: Connection, key: ApiKey, digest: str) -> None:
    connection.execute(
        api_keys.insert().values(
            key_id=key.key_id,
            name=key.name,
            digest=digest,
            scopes=sorted(key.scopes),
            created_at=key.created_at,
            expires_at=key.expires_at,
        )
    )


def find(connection: Connection, key_id: str, *, lock: bool = False) -> tuple[ApiKey, str] | None:
    """The key and its stored digest; `lock`: nobody else changes it before this transaction ends."""
    query = sa.select(api_keys).where(api_keys.c.key_id == key_id)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    return None if row is None else (_key(row), row.digest)


def every(connection: Connection) -> list[ApiKey]:
    """All keys, oldest first."""
    rows = connection.execute(sa.select(api_keys).order_by(api_keys.c.created_at, api_keys.c.key_id))
    return [_key(row) for row in rows]


def revoke(connection: Connection, key_id: str, now: datetime) -> bool:
    """Whether a key that was not revoked yet is now."""
    change = api_keys.update().where(api_keys.c.key_id == key_id, api_keys.c.revoked_at.is_(None))
    return connection.execute(change.values(revoked_at=now)).rowcount == 1


def replace(connection: Connection, key_id: str, successor: str, until: datetime) -> None:
    """Note that a key was rotated to `successor` and is good no longer than `until`."""
    change = api_keys.update().where(api_keys.c.key_id == key_id)
    connection.execute(change.values(replaced_by=successor, expires_at=until))


def touch(connection: Connection, key_id: str, now: datetime) -> None:
    """Note that the key was used."""
    connection.execute(api_keys.update().where(api_keys.c.key_id == key_id).values(last_used_at=now))


def _key(row: sa.Row[Any]) -> ApiKey:
    return ApiKey(
        key_id=row.key_id,
        name=row.name,
        scopes=frozenset(Scope(scope) for scope in row.scopes),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
        replaced_by=row.replaced_by,
    )
