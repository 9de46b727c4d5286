"""PostgreSQL that is slow, silent, wrong or behind a pooler."""

import threading
import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from service.errors import ConfigurationError, StoreUnavailable
from service.kit.db import Database
from service.kit.postgres import Limits, explain, require_version
from tests.conftest import PostgresStore
from tests.proxies import PausableProxy, pausable
from tests.worlds import eventually

pytestmark = pytest.mark.postgres


@pytest.fixture
def url(_postgres: PostgresStore) -> str:
    return _postgres.url


@pytest.fixture
def proxy(url: str) -> Iterator[PausableProxy]:
    where = make_url(url)
    with pausable(where.host or "127.0.0.1", where.port or 5432) as proxy:
        yield proxy


@pytest.fixture
def through_proxy(url: str, proxy: PausableProxy) -> Iterator[Database]:
    where = make_url(url).set(host="127.0.0.1", port=proxy.port)
    database = Database(where.render_as_string(hide_password=False))
    yield database
    proxy.go_on()
    database.close()


def ask(database: Database) -> int:
    with database.read() as connection:
        return connection.scalar(sa.text("SELECT 1")) or 0


def test_a_silent_server_costs_a_prompt_caller_its_patience_and_the_next_ones_nothing(
    through_proxy: Database, proxy: PausableProxy
) -> None:
    prompt = through_proxy.within(0.5)
    assert ask(prompt) == 1
    proxy.pause()

    for longest in (1.5, 0.4, 0.4):  # the first one finds out; three times its patience for a busy machine
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            ask(prompt)
        assert time.monotonic() - started < longest

    proxy.go_on()
    eventually(lambda: _answers(prompt), 10)
    assert ask(through_proxy) == 1


def test_a_silent_server_ends_a_first_connection_as_soon(through_proxy: Database, proxy: PausableProxy) -> None:
    proxy.pause()
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="timeout expired"):
        ask(through_proxy.within(0.5))
    assert time.monotonic() - started < 1.8  # the driver itself would wait for two seconds


def test_a_commit_that_nobody_confirms_is_no_success(through_proxy: Database, proxy: PausableProxy, url: str) -> None:
    def write() -> None:
        with through_proxy.within(0.5).write() as connection:
            connection.exec_driver_sql("INSERT INTO leases VALUES ('x', 'o', 1, now())")
            proxy.pause()

    with pytest.raises(StoreUnavailable):
        write()
    proxy.go_on()
    direct = Database(url)
    with direct.write() as connection:  # done or not, the row can be written over
        connection.exec_driver_sql("DELETE FROM leases WHERE name = 'x'")
    direct.close()


def test_one_slow_statement_ends_alone_and_the_server_gives_it_up(url: str) -> None:
    database = Database(url)
    prompt = database.within(0.4)
    with pytest.raises(StoreUnavailable, match="no answer in time"), prompt.read() as connection:
        connection.exec_driver_sql("SELECT pg_sleep(60)")
    eventually(lambda: _answers(prompt), 5)
    eventually(lambda: _running(database, "pg_sleep(60)") == 0, 15)
    database.close()


def test_a_caller_that_may_wait_is_not_cut_off(url: str) -> None:
    database = Database(url, Limits(statement_s=0.3))
    with pytest.raises(StoreUnavailable, match="statement timeout"), database.read() as connection:
        connection.exec_driver_sql("SELECT pg_sleep(5)")
    with database.read(patient=True) as connection:
        connection.exec_driver_sql("SELECT pg_sleep(0.6)")
    with pytest.raises(StoreUnavailable), database.read() as connection:
        connection.exec_driver_sql("SELECT pg_sleep(5)")  # patience was that transaction's alone
    database.close()


def test_a_full_pool_is_said_after_the_wait_that_was_set(url: str) -> None:
    database = Database(url, Limits(pool_size=1, pool_overflow=0, pool_s=0.2))
    with database.read(), pytest.raises(StoreUnavailable, match="QueuePool"), database.read():
        pass
    database.close()


@pytest.mark.parametrize("patient", [False, True])
def test_behind_a_pooler_nothing_outlives_its_transaction(url: str, patient: bool) -> None:
    database = Database(url, Limits(pool_size=1, pool_overflow=0, lock_s=7, statement_s=9, transaction_pooler=True))
    shown = "SELECT current_setting('lock_timeout'), current_setting('statement_timeout'), current_setting('TimeZone')"
    for _ in range(8):  # the driver would prepare a statement at its sixth run
        with database.read(patient=patient) as connection:
            limits = tuple(connection.exec_driver_sql(shown).one())
        assert limits == ("7s", "0" if patient else "9s", "UTC")
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        assert driver.execute("SHOW lock_timeout").fetchone() == ("0",)
        assert driver.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
    database.close()


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"host": "127.0.0.1", "port": 1}, "start the server"),
        ({"host": "no-such-host.invalid"}, "no such host"),
        ({"database": "no_such_database_here"}, "createdb"),
        ({"username": "no_such_user_here", "password": "x"}, "user"),
    ],
)
def test_a_wrong_address_is_answered_with_what_to_do(url: str, change: dict[str, object], advice: str) -> None:
    wrong = Database(make_url(url).set(**change).render_as_string(hide_password=False))  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailable, match=advice):
        wrong.require_supported()
    wrong.close()


def test_a_server_that_is_too_old_is_refused_by_its_number(url: str) -> None:
    database = Database(url)
    database.require_supported()
    with database.read() as connection:
        found, connection.dialect.server_version_info = connection.dialect.server_version_info, (14, 11)
        with pytest.raises(ConfigurationError, match=r"PostgreSQL 14\.11; 15 or newer"):
            require_version(connection)
        connection.dialect.server_version_info = found
    database.close()


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ('FATAL:  password authentication failed for user "a"', "wrong user or password"),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.7", user "a"', "pg_hba.conf"),
        ("FATAL:  unsupported startup parameter: options", "ADAPTIDE_DATABASE_POOLER=transaction"),
        ('FATAL:  database "shop" does not exist', "createdb"),
        ('FATAL:  role "shop" does not exist', "no such user"),
    ],
)
def test_a_refusal_comes_with_advice(message: str, advice: str) -> None:
    assert explain(message).startswith(message)
    assert advice in explain(message)


def test_what_is_not_known_stays_as_it_is() -> None:
    assert explain("the disk is full") == "the disk is full"


def test_no_thread_is_left_by_a_store_that_was_closed_while_it_was_silent(
    through_proxy: Database, proxy: PausableProxy
) -> None:
    proxy.pause()
    with pytest.raises(StoreUnavailable):
        ask(through_proxy.within(0.3))
    through_proxy.close()
    eventually(lambda: not any(thread.name == "store-probe" for thread in threading.enumerate()), 10)


def _answers(database: Database) -> bool:
    try:
        return ask(database) == 1
    except StoreUnavailable:
        return False


def _running(database: Database, text: str) -> int:
    query = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE :text AND pid <> pg_backend_pid()"
    )
    with database.read() as connection:
        return connection.scalar(query, {"text": f"%{text}%"}) or 0
