"""Schema versions through Alembic: upgrade, current, check."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from service.errors import ConfigurationError
from service.kit.db import Database

_PACKAGE = Path(__file__).resolve().parents[1]


def _config(database: Database) -> Config:
    checkout, packaged = _PACKAGE.parent / "migrations", _PACKAGE / "_migrations"
    config = Config()
    config.set_main_option("script_location", str(packaged if packaged.is_dir() else checkout))
    config.attributes["database"] = database
    return config


def upgrade(database: Database, revision: str = "head") -> None:
    """Bring the schema to `revision`. Safe to run from several processes at once."""
    command.upgrade(_config(database), revision)


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
    found, wanted = current(database), head(database)
    if found != wanted:
        raise ConfigurationError(
            f"the store's schema is at {found or 'nothing'}, this version needs {wanted}: run `adaptide db upgrade`"
        )
