"""The schema goes up, down and up again on both databases, and is then exactly what the code declares."""

from datetime import timedelta

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from service.adapters import repository as adapter_rows
from service.adapters import service as adapters
from service.adapters.repository import NewAdapter, NewBase
from service.adapters.states import AdapterState
from service.catalog import repository as catalog
from service.errors import ConfigurationError
from service.events import repository
from service.events.repository import PopularityKey
from service.events.service import erase_user, history, ingest
from service.kit import migrate
from service.kit.db import Database
from service.tables import declared, metadata
from tests import worlds
from tests.conftest import SetClock


def differences(database: Database) -> list[object]:
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": declared})
        found: list[object] = compare_metadata(context, metadata)
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


def test_the_second_version_comes_and_goes_and_every_event_stays(database: Database) -> None:
    sent = [worlds.event(f"e{n}", "u", f"i{n}", worlds.START + timedelta(minutes=n), value=n / 3) for n in range(20)]
    worlds.send(database, SetClock(), sent)
    key = PopularityKey(60.0, ("impression",))
    with database.write() as connection:
        repository.begin_popularity(connection, key)
        assert repository.advance_popularity(connection, 0, 20, {"i1": 2.5, "i2": -1e300})
    before = history(database, "u", limit=50, before_seq=None)
    assert len(before.events) == 20

    migrate.downgrade(database, "0001")
    with database.read() as connection:
        names = set(sa.inspect(connection).get_table_names())
        assert not names & {"item_popularity", "popularity_state"}
        indexes = {index["name"] for index in sa.inspect(connection).get_indexes("events")}
        assert "ix_events_user_id_occurred_at_seq" in indexes
    assert history(database, "u", limit=50, before_seq=None) == before

    migrate.upgrade(database)
    assert differences(database) == []
    assert history(database, "u", limit=50, before_seq=None) == before
    with database.read() as connection:
        assert repository.popularity_counted_through(connection, key) is None
    worlds.send(database, SetClock(), [worlds.event("more", "u", "i1", worlds.START)])
    assert len(history(database, "u", limit=50, before_seq=None).events) == 21


def test_the_third_version_comes_and_goes_and_every_item_keeps_its_codes(database: Database) -> None:
    worlds.put(database, SetClock(), worlds.items(range(5)))
    with database.write() as connection:
        codes = {worlds.item_id(n): (n, 0, 0, n) for n in range(3)}
        catalog.set_codes(connection, "b-1", codes, revision=catalog.next_revision(connection))
    with database.read() as connection:
        before = catalog.changed_since(connection, 0)

    for move in (lambda: migrate.downgrade(database, "0002"), lambda: migrate.upgrade(database)):
        move()
        with database.read() as connection:
            assert catalog.changed_since(connection, 0) == before
            assert catalog.taken_codes(connection, "b-1", {(1, 0, 0), (2, 0, 0)}) == {(1, 0, 0, 1), (2, 0, 0, 2)}
            assert [item.item_id for item in catalog.without_codes(connection, "b-1")] == ["i03", "i04"]
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
