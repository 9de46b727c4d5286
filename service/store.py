"""The store that the settings name, opened for what a process does with it."""

from dataclasses import replace
from datetime import timedelta

from service.errors import ConfigurationError
from service.kit import migrate
from service.kit.db import Database
from service.kit.postgres import Limits
from service.settings import Pooler, Settings

WORKER_CONNECTIONS = 4
"""Kept open by an updater or a command: it does one thing at a time, its lease another, upkeep a third."""


def open_store(settings: Settings, *, serves: bool = False) -> Database:
    """The caller closes it. `serves`: requests are answered with it, so no statement may take for ever.

    Raises ConfigurationError for a wrong URL or a folder that cannot be made. Connects to nothing yet.
    """
    limits = Limits(
        pool_size=settings.database_pool_size,
        pool_overflow=settings.database_pool_overflow,
        pool_s=_seconds(settings.database_pool_timeout),
        connect_s=_seconds(settings.database_connect_timeout),
        lock_s=_seconds(settings.database_lock_timeout),
        statement_s=_seconds(settings.database_statement_timeout) if serves else 0.0,
        transaction_pooler=settings.database_pooler is Pooler.TRANSACTION,
    )
    if not serves:
        limits = replace(limits, pool_size=min(limits.pool_size, WORKER_CONNECTIONS))
    try:
        return Database(settings.store_url, limits)
    except OSError as error:
        raise ConfigurationError(f"the database's folder cannot be used: {error}; set ADAPTIDE_HOME") from error


def require_usable(database: Database) -> None:
    """Raises ConfigurationError for an old server or another version's schema, StoreUnavailable when none answers."""
    database.require_supported()
    migrate.require_head(database)


def _seconds(duration: timedelta) -> float:
    return duration.total_seconds()
