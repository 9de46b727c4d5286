"""A named lease with a fence: at most one holder, and a late holder's writes can be recognised and refused.

Time is the store's, which all holders share: no host's clock, wrong or set meanwhile, decides who holds what. Should
the store's own clock be set, the fence still lets one holder write (docs/decisions/0026).
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
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
    """expires_at: by the store's clock, when it was acquired."""

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


def acquire(connection: Connection, name: str, owner: str, duration: timedelta) -> Lease | None:
    """The lease if it is free, expired or already `owner`'s (then it is extended under the same fence); else None.

    duration: the same for all who want it. One that claims to last longer was written before the store's clock was set
    back, and is free.
    """
    bound_pauses(connection)
    wanted = sa.select(leases).where(leases.c.name == name).with_for_update()
    row = connection.execute(wanted).one_or_none()
    if row is None:  # the first time: of two at once, both find it free, and one of them first
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        free = {"name": name, "owner": "", "fence": 0, "expires_at": datetime.fromtimestamp(0, UTC)}
        connection.execute(insert(leases).values(free).on_conflict_do_nothing())
        row = connection.execute(wanted).one()
    now = store_time(connection)  # not before the lock is held: waiting for it takes time
    expires_at = now + duration
    if row.owner != owner and now < row.expires_at <= expires_at:
        return None
    # A holder whose lease ran out gets a new fence: somebody may have worked in between.
    fence = row.fence if row.owner == owner and row.expires_at > now else row.fence + 1
    connection.execute(
        leases.update().where(leases.c.name == name).values(owner=owner, fence=fence, expires_at=expires_at)
    )
    return Lease(name, owner, fence, expires_at)


def check(connection: Connection, lease: Lease) -> None:
    """Raises LeaseLost unless `lease` is still in force; call it inside the transaction whose writes it protects."""
    bound_pauses(connection)
    row = connection.execute(sa.select(leases).where(leases.c.name == lease.name).with_for_update()).one_or_none()
    now = store_time(connection)
    if row is None or row.owner != lease.owner or row.fence != lease.fence or row.expires_at <= now:
        raise LeaseLost(f"lease {lease.name!r} with fence {lease.fence} is no longer held; another process took over")


def find(connection: Connection, name: str) -> Lease | None:
    """Who holds it, or held it last: expires_at says which. None when nobody ever did."""
    row = connection.execute(sa.select(leases).where(leases.c.name == name)).one_or_none()
    return None if row is None else Lease(row.name, row.owner, row.fence, row.expires_at)


def release(connection: Connection, lease: Lease) -> None:
    """Give the lease back early; a lost lease is left alone."""
    connection.execute(
        leases.update()
        .where(leases.c.name == lease.name, leases.c.owner == lease.owner, leases.c.fence == lease.fence)
        .values(expires_at=store_time(connection))
    )


def store_time(connection: Connection) -> datetime:
    """What the store's clock says now: the server's; of SQLite the machine's, where all who use it run."""
    if connection.dialect.name == "postgresql":
        now: sa.ColumnElement[datetime] = sa.func.clock_timestamp(type_=UtcDateTime)
    else:
        now = sa.func.strftime("%Y-%m-%d %H:%M:%f", "now", type_=UtcDateTime)
    found: datetime = connection.execute(sa.select(now)).scalar_one()
    return found
