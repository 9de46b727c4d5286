"""Making time pass for a lease, whose time is the store's."""

from datetime import timedelta

import sqlalchemy as sa

from service.kit.db import Database
from service.kit.leases import leases, store_time

A_MOMENT = timedelta(seconds=1)


def run_out(database: Database, name: str = "updater") -> None:
    """As if its holder had not renewed it in time."""
    _set(database, name, -A_MOMENT)


def set_clock(database: Database, change: timedelta, name: str = "updater") -> None:
    """As if the store's clock had been set forward (or back) by this much: all that it wrote is older (or younger)."""
    with database.write() as connection:
        found = connection.execute(sa.select(leases.c.expires_at).where(leases.c.name == name)).scalar_one()
        connection.execute(leases.update().where(leases.c.name == name).values(expires_at=found - change))


def _set(database: Database, name: str, left: timedelta) -> None:
    with database.write() as connection:
        expires_at = store_time(connection) + left
        connection.execute(leases.update().where(leases.c.name == name).values(expires_at=expires_at))
