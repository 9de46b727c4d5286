"""What the migrations make is what the code declares; what some of them mean for what is stored.

That each goes up, down and up again with data in the store: tests/chaos/test_migrations.py.
"""

from datetime import timedelta

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from service.adapters import repository as adapter_rows
from service.adapters import service as adapters
from service.adapters.repository import NewAdapter, NewBase
from service.adapters.states import AdapterState
from service.errors import ConfigurationError
from service.events import repository
from service.events.service import history, ingest
from service.kit import migrate
from service.kit.db import Database
from service.tables import declared, metadata
from service.users.service import erase_user
from tests import worlds
from tests.conftest import SetClock


def differences(database: Database) -> list[object]:
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": declared})
        found: list[object] = compare_metadata(context, metadata)
    return found


def test_what_the_migrations_make_is_what_the_code_declares(database: Database) -> None:
    assert differences(database) == []


def test_the_fourth_version_comes_and_goes_and_every_event_keeps_its_number_and_its_id(
    database: Database, clock: SetClock
) -> None:
    properties = {"nested": [1, "ä", None]}
    sent = [worlds.event(f"e{n}", f"u{n % 3}", f"i{n}", worlds.START + timedelta(minutes=n)) for n in range(30)]
    sent[7] |= {"value": 0.1, "position": 3, "properties": properties}
    worlds.send(database, clock, sent)
    erase_user(database, "u2", clock=clock, actor="tests")  # gaps, one of them at the end
    before = [history(database, f"u{n}", limit=50, before_seq=None) for n in range(3)]

    migrate.downgrade(database, "0003")
    with database.read() as connection:
        names = set(sa.inspect(connection).get_table_names())
        hashes = list(connection.scalars(sa.text("SELECT body_hash FROM events ORDER BY seq")))
    assert not {name for name in names if name.startswith("event_") or name.startswith("events_")}
    assert len(hashes) == 20
    assert {len(own) for own in hashes} == {64}
    columns = "event_id, body_hash, user_id, item_id, event_type, occurred_at, received_at"
    with pytest.raises(sa.exc.IntegrityError), database.write() as connection:
        connection.exec_driver_sql(f"INSERT INTO events ({columns}) SELECT {columns} FROM events LIMIT 1")  # noqa: S608

    migrate.upgrade(database)
    assert differences(database) == []
    assert [history(database, f"u{n}", limit=50, before_seq=None) for n in range(3)] == before
    report = ingest(
        database,
        [sent[0], sent[7], sent[1] | {"item_id": "other"}, sent[2], worlds.event("new", "u0", "i", worlds.START)],
        clock=clock,
        clock_tolerance=timedelta(minutes=5),
    )
    assert (report.accepted, report.duplicates, len(report.rejected)) == (2, 2, 1)  # u2's were forgotten
    with database.read() as connection:
        assert repository.interactions_after(connection, 0, 1)[0].seq == 1
        later = [row.seq for row in repository.interactions_after(connection, 29, 9)]
    assert len(later) == 2
    assert later[0] > 30  # which an erased event had


def test_the_fifth_version_goes_and_a_collected_adapter_stays_out_of_service(database: Database) -> None:
    clock = SetClock()
    adapters.register_base(database, clock, NewBase("b-0000000000000000", "0" * 64))
    for version, state in (
        ("a000001-000000000000", AdapterState.PASSED),
        ("a000002-000000000000", AdapterState.REFUSED),
    ):
        adapters.register_adapter(database, clock, NewAdapter(version, "b-0000000000000000", "1" * 64, "peso"), state)
    with database.write() as connection:
        adapter_rows.set_state(connection, "a000001-000000000000", AdapterState.COLLECTED)
        adapter_rows.set_collected(connection, "b-0000000000000000", clock())

    migrate.downgrade(database, "0004")
    with database.read() as connection:
        assert "replicas" not in sa.inspect(connection).get_table_names()
        states = dict(connection.execute(sa.text("SELECT adapter_version, state FROM adapters")).all())
    assert states == {"a000001-000000000000": "corrupt", "a000002-000000000000": "refused"}

    migrate.upgrade(database)
    assert differences(database) == []
    with database.read() as connection:
        base = adapter_rows.find_base(connection, "b-0000000000000000")
    assert base is not None
    assert base.collected_at is None


def test_a_store_of_another_version_is_refused_with_the_command_that_helps(database: Database) -> None:
    migrate.require_head(database)
    migrate.downgrade(database, "base")

    with pytest.raises(ConfigurationError, match="adaptide db upgrade"):
        migrate.require_head(database)


def test_a_store_of_a_newer_version_is_refused_and_not_upgraded(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")

    for ask in (migrate.require_head, migrate.upgrade):
        with pytest.raises(ConfigurationError, match=r"at 9999.*newer one"):
            ask(database)

    with database.write() as connection:
        head = sa.text("UPDATE alembic_version SET version_num = :head")
        connection.execute(head, {"head": migrate.head(database)})


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
