"""Schema versions through Alembic: upgrade, current, check."""

import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from service.errors import ConfigurationError, StoreUnavailable
from service.kit.db import Database, is_lock_wait

PATIENCE_S = 600.0
_PACKAGE = Path(__file__).resolve().parents[1]


def _config(database: Database) -> Config:
    checkout, packaged = _PACKAGE.parent / "migrations", _PACKAGE / "_migrations"
    config = Config()
    config.set_main_option("script_location", str(packaged if packaged.is_dir() else checkout))
    config.attributes["database"] = database
    return config


def upgrade(database: Database, revision: str = "head") -> None:
    """Bring the schema to `revision`: all of the way or, when it fails or is killed, no step of it.

    Safe to run from several processes at once: one does it, the others wait for it. Raises StoreUnavailable when what
    is in the way lasts longer than ten minutes, ConfigurationError for a schema of a newer version.
    """
    _require_known(database)
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            command.upgrade(_config(database), revision)
            return
        except StoreUnavailable as error:
            if not is_lock_wait(error) or time.monotonic() > until:
                raise


def downgrade(database: Database, revision: str) -> None:
    """Take the schema back to `revision` (`base`: empty)."""
    command.downgrade(_config(database), revision)


def current(database: Database) -> str | None:
    """The revision that the store is at; None for an empty one."""
    with database.read() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head(database: Database) -> str:
    """The newest revision that this code knows."""
    revision = ScriptDirectory.from_config(_config(database)).get_current_head()
    assert revision is not None  # noqa: S101  # the package always carries migrations
    return revision


def require_head(database: Database) -> None:
    """Raises ConfigurationError when the schema is not the one that this code was written for."""
    found, wanted = _require_known(database), head(database)
    if found != wanted:
        raise ConfigurationError(
            f"the store's schema is at {found or 'nothing'}, this version needs {wanted}: run `adaptide db upgrade`"
        )


def _require_known(database: Database) -> str | None:
    """The revision that the store is at. Raises ConfigurationError for one that this code does not know."""
    found, scripts = current(database), ScriptDirectory.from_config(_config(database))
    if found is not None and found not in {script.revision for script in scripts.walk_revisions()}:
        raise ConfigurationError(
            f"the store's schema is at {found}, which this version does not know, so a newer one upgraded it: install "
            "that version, or restore the database from before"
        )
    return found
