"""Transactions, time and URLs, on both databases."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.errors import ConfigurationError, StoreUnavailable
from service.kit import migrate
from service.kit.db import Database
from service.kit.leases import leases

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def insert(connection: sa.Connection, name: str, at: datetime = NOON) -> None:
    connection.execute(leases.insert().values(name=name, owner="o", fence=1, expires_at=at))


def insert_all(connection: sa.Connection, wanted: list[str]) -> None:
    for name in wanted:
        insert(connection, name)


def names(database: Database) -> set[str]:
    with database.read() as connection:
        return set(connection.scalars(sa.select(leases.c.name)))


def test_a_block_that_ends_commits_and_one_that_raises_leaves_nothing(database: Database) -> None:
    with database.write() as connection:
        insert(connection, "kept")
    with pytest.raises(sa.exc.IntegrityError), database.write() as connection:
        insert_all(connection, ["lost", "kept"])  # the second one exists already

    assert names(database) == {"kept"}


def test_a_time_comes_back_aware_in_utc_from_whatever_zone_it_was_given(database: Database) -> None:
    with database.write() as connection:
        insert(connection, "a", NOON.astimezone(timezone(timedelta(hours=5, minutes=30))))
    with database.read() as connection:
        found = connection.scalar(sa.select(leases.c.expires_at))

    assert found == NOON
    assert found.tzinfo is UTC


def test_a_naive_time_is_refused(database: Database) -> None:
    with pytest.raises(sa.exc.StatementError, match="time zone"), database.write() as connection:
        insert(connection, "a", datetime(2026, 3, 1, 12))


def test_writers_that_read_first_wait_for_each_other_and_none_is_told_locked(database: Database) -> None:
    """SQLite would fail such transactions at once if they were deferred (RELIABILITY.md, scenario 18)."""
    with database.write() as connection:
        insert(connection, "counter")
    failures: list[BaseException] = []

    def count() -> None:
        try:
            for _ in range(25):
                with database.write() as connection:
                    row = sa.select(leases.c.fence).where(leases.c.name == "counter").with_for_update()
                    fence = connection.scalar(row) or 0
                    connection.execute(leases.update().where(leases.c.name == "counter").values(fence=fence + 1))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    with database.read() as connection:
        assert connection.scalar(sa.select(leases.c.fence)) == 101


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "no database URL"),
        ("mysql://u@h/d", "sqlite and postgresql"),
        ("sqlite://", "in-memory"),
        ("sqlite:///:memory:", "in-memory"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_with_what_can(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Database(url)


def test_a_store_that_does_not_answer_is_store_unavailable(tmp_path: Path) -> None:
    nowhere = Database("postgresql://nobody@127.0.0.1:1/none", lock_timeout_s=2)
    with pytest.raises(StoreUnavailable, match="did not answer") as caught, nowhere.read():
        pass
    assert caught.value.retry_after == 1
    nowhere.close()


def flushing(connection: sa.Connection) -> object:
    """How this transaction's commit treats the disk: SQLite's number (1 NORMAL, 2 FULL), PostgreSQL's word."""
    sqlite = connection.dialect.name == "sqlite"
    return connection.scalar(sa.text("PRAGMA synchronous" if sqlite else "SHOW synchronous_commit"))


def test_only_a_write_that_may_wait_for_the_next_flush_does(database: Database) -> None:
    levels = []
    for flushed in (True, False, False, True):  # all on the pool's one connection
        with database.write(flushed=flushed) as connection:
            insert(connection, f"{len(levels)}")
            levels.append(flushing(connection))

    at_once, later = (2, 1) if database.dialect == "sqlite" else ("on", "off")
    assert levels == [at_once, later, later, at_once]
    assert names(database) == {"0", "1", "2", "3"}


def test_a_write_that_is_not_flushed_outlives_its_process(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    database = Database(url)
    migrate.upgrade(database)
    database.close()
    ended = subprocess.run([sys.executable, "-c", KILLED, url], check=False)

    assert ended.returncode == -signal.SIGKILL
    database = Database(url)
    assert names(database) == {"written"}
    database.close()


def test_a_thread_that_outlives_the_store_leaves_no_connection_open(database: Database) -> None:
    """One that was on its way when the store was closed, and one that only comes then."""
    opened: list[Any] = []

    def use(meanwhile: Callable[[], None]) -> None:
        with database.read() as connection:
            connection.exec_driver_sql("SELECT 1")
            opened.append(connection.connection.dbapi_connection)
            meanwhile()

    use(database.close)
    use(lambda: None)
    assert opened[0] is not opened[1]
    for connection in opened:
        with pytest.raises(Exception, match="closed"):
            connection.execute("SELECT 1")


KILLED = """
import os, signal, sys
from datetime import UTC, datetime
from service.kit.db import Database
from service.kit.leases import leases
with Database(sys.argv[1]).write(flushed=False) as connection:
    connection.execute(leases.insert().values(name="written", owner="o", fence=1, expires_at=datetime.now(UTC)))
os.kill(os.getpid(), signal.SIGKILL)
"""
