"""A named lease with a fence: at most one holder, and a late holder's writes can be recognised and refused."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from service.errors import LeaseLost
from service.kit.db import BigInt, UtcDateTime, metadata

PAUSED_S = 4.0  # below the 5 s within which a lease that ran out is taken over

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("fence", BigInt, nullable=False, comment="grows by one with every new holder"),
    sa.Column("expires_at", UtcDateTime, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Lease:
    name: str
    owner: str
    fence: int
    expires_at: datetime


def bound_pauses(connection: Connection) -> None:
    """Should this process be paused inside this transaction, it loses it, and the locks that hold others up with it.

    On PostgreSQL; SQLite's locks are those of a process on the same machine.
    """
    if connection.dialect.name == "postgresql":
        query = sa.text("SELECT set_config('idle_in_transaction_session_timeout', :milliseconds, true)")
        connection.execute(query, {"milliseconds": str(int(PAUSED_S * 1000))})


def acquire(connection: Connection, name: str, owner: str, now: datetime, duration: timedelta) -> Lease | None:
    """The lease if it is free, expired or already `owner`'s (then it is extended under the same fence); else None."""
    bound_pauses(connection)
    row = connection.execute(sa.select(leases).where(leases.c.name == name).with_for_update()).one_or_none()
    expires_at = now + duration
    if row is None:
        connection.execute(leases.insert().values(name=name, owner=owner, fence=1, expires_at=expires_at))
        return Lease(name, owner, 1, expires_at)
    if row.owner != owner and row.expires_at > now:
        return None
    # A holder whose lease ran out gets a new fence: somebody may have worked in between.
    fence = row.fence if row.owner == owner and row.expires_at > now else row.fence + 1
    connection.execute(
        leases.update().where(leases.c.name == name).values(owner=owner, fence=fence, expires_at=expires_at)
    )
    return Lease(name, owner, fence, expires_at)


def check(connection: Connection, lease: Lease, now: datetime) -> None:
    """Raises LeaseLost unless `lease` is still in force; call it inside the transaction whose writes it protects."""
    bound_pauses(connection)
    row = connection.execute(sa.select(leases).where(leases.c.name == lease.name).with_for_update()).one_or_none()
    if row is None or row.owner != lease.owner or row.fence != lease.fence or row.expires_at <= now:
        raise LeaseLost(f"lease {lease.name!r} with fence {lease.fence} is no longer held; another process took over")


def release(connection: Connection, lease: Lease, now: datetime) -> None:
    """Give the lease back early; a lost lease is left alone."""
    connection.execute(
        leases.update()
        .where(leases.c.name == lease.name, leases.c.owner == lease.owner, leases.c.fence == lease.fence)
        .values(expires_at=now)
    )
