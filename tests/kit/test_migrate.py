"""The schema goes up, down and up again on both databases, and is then exactly what the code declares."""

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from service.errors import ConfigurationError
from service.kit import migrate
from service.kit.db import Database
from service.tables import metadata


def differences(database: Database) -> list[object]:
    with database.read() as connection:
        found: list[object] = compare_metadata(MigrationContext.configure(connection), metadata)
    return found


def test_what_the_migrations_make_is_what_the_code_declares(database: Database) -> None:
    assert differences(database) == []


def test_up_down_and_up_again(database: Database) -> None:
    migrate.downgrade(database, "base")
    with database.read() as connection:
        assert set(sa.inspect(connection).get_table_names()) <= {"alembic_version"}
    assert migrate.current(database) is None

    migrate.upgrade(database)

    assert migrate.current(database) == migrate.head(database)
    assert differences(database) == []
    migrate.upgrade(database)  # again: nothing to do


def test_a_store_of_another_version_is_refused_with_the_command_that_helps(database: Database) -> None:
    migrate.require_head(database)
    migrate.downgrade(database, "base")

    with pytest.raises(ConfigurationError, match="adaptide db upgrade"):
        migrate.require_head(database)


@pytest.mark.parametrize("table", ["activations", "audit_log"])
@pytest.mark.parametrize("verb", ["UPDATE {} SET actor = 'x'", "DELETE FROM {}"])
def test_history_cannot_be_changed_even_by_sql(database: Database, table: str, verb: str) -> None:
    rows = {
        "activations": "INSERT INTO activations (audit_id, revision, action, base_id, actor, created_at) "
        "VALUES ('a', 1, 'base', 'b', 'cli', '2026-01-01 00:00:00')",
        "audit_log": "INSERT INTO audit_log (audit_id, created_at, actor, action) "
        "VALUES ('a', '2026-01-01 00:00:00', 'cli', 'key.create')",
    }
    with database.write() as connection:
        connection.exec_driver_sql(rows[table])

    with pytest.raises(sa.exc.DBAPIError, match="append-only"), database.write() as connection:
        connection.exec_driver_sql(verb.format(table))

    with database.read() as connection:
        assert connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one() == 1  # noqa: S608
