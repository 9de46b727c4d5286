"""Scenario 22: every migration up, down and up again with data in the store, killed half way, and by two at once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from service.kit import migrate
from service.kit.db import Database
from service.tables import declared, metadata
from tests.chaos.filled import contents, fill, lost, schema
from tests.chaos.scenarios import sized

pytestmark = pytest.mark.scenario(22)
EVERYTHING = {"everything"}


def revisions(database: Database) -> list[tuple[str, set[str]]]:
    """(revision, what its downgrade loses by nature), from the first on."""
    scripts = ScriptDirectory.from_config(migrate._config(database))
    found = []
    for script in scripts.walk_revisions():
        assert hasattr(script.module, "LOSES"), (
            f"{script.path} does not say what its downgrade loses: LOSES = (table, table.column, ..), or ()"
        )
        found.append((script.revision, set(script.module.LOSES)))
    return found[::-1]


def drift(database: Database) -> list[Any]:
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": declared, "compare_type": True})
        return list(compare_metadata(context, metadata))


@pytest.mark.timeout(1800)
def test_every_migration_goes_up_down_and_up_and_loses_what_it_says(
    database: Database, figures: dict[str, Any]
) -> None:
    rows = sized(12, 400)
    migrate.downgrade(database, "base")
    before = "base"
    for revision, loses in revisions(database):
        there, looked = (contents(database), schema(database)) if before != "base" else ({}, {})

        migrate.upgrade(database, revision)
        assert lost(there, contents(database), only_common=True) == set(), revision
        looks = schema(database)
        migrate.downgrade(database, before)
        if there:
            assert lost(there, contents(database)) == set(), revision
            assert lost(contents(database), there) == set(), revision
            assert schema(database) == looked, revision

        migrate.upgrade(database, revision)
        assert schema(database) == looks, revision
        fill(database, revision, rows)
        held = contents(database)
        assert all(len(rows) > 0 for rows in held.values()), "the test is to have rows in every table"
        migrate.downgrade(database, before)
        if there:
            kept = {name for name in loses if "." in name}
            assert lost(held, contents(database), only_common=True) <= kept, revision
            assert schema(database) == looked, revision
        migrate.upgrade(database, revision)
        assert schema(database) == looks, revision
        if loses != EVERYTHING:
            assert lost(held, contents(database)) == loses, revision
        fill(database, revision, rows, again=True)  # for the migrations that follow
        before = revision

    assert migrate.current(database) == migrate.head(database)
    assert drift(database) == []
    held = contents(database)
    figures |= {
        "store": database.dialect,
        "migrations": len(revisions(database)),
        "rows": sum(map(len, held.values())),
        "loss": 0,
        "drift": 0,
    }
    migrate.downgrade(database, "base")


# Forks a child for each order and says how it ended; a child that is told to is killed before its nth statement, and
# "stamp" stands for the statement that writes the version which a migration has come to.
DRIVER = """
import json, os, signal, sys, time
import sqlalchemy as sa
from service.kit import migrate
from service.kit.db import Database
from service.kit.postgres import Limits

url = sys.argv[1]

def upgrade(kill_at, stamps_only, pause):
    database, seen, stamped = Database(url, Limits(lock_s=1.0)), 0, 0
    @sa.event.listens_for(database.engine, "before_cursor_execute")
    def count(connection, cursor, statement, *rest):
        nonlocal seen, stamped
        stamp = statement.startswith("UPDATE alembic_version")
        stamped += stamp
        seen += stamp or not stamps_only
        if kill_at and seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if stamp and stamped == 1:
            time.sleep(pause)
    migrate.upgrade(database)
    os._exit(100 + stamped)

for line in sys.stdin:
    orders = json.loads(line)
    children = []
    for order in orders:
        pid = os.fork()
        if pid == 0:
            try:
                upgrade(*order)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        children.append(pid)
    ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    database = Database(url)
    print(json.dumps([ended, migrate.current(database)]), flush=True)
    database.close()
"""


class Driver:
    """Upgrades in processes of their own."""

    def __init__(self, url: str, log: Path) -> None:
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, url],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"PYTHONPATH": os.getcwd()},
            )

    def run(self, *orders: tuple[int, bool, float]) -> tuple[list[int], str | None]:
        """(kill before this statement or 0, count version stamps only, seconds to wait in the first migration) for each
        process; returns how they ended (100 + migrations done, or -9) and the version that the store is at."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(orders) + "\n")
        self._process.stdin.flush()
        ended, version = json.loads(self._process.stdout.readline())
        return ended, version

    def close(self) -> None:
        self._process.communicate()


@pytest.mark.timeout(1800)
def test_an_upgrade_that_is_killed_has_done_nothing_and_can_be_repeated(
    database: Database, database_url: str, tmp_path: Path, figures: dict[str, Any]
) -> None:
    first, *later = [revision for revision, _ in revisions(database)]
    migrate.downgrade(database, first)
    fill(database, first, 30)
    held, looks = contents(database), schema(database)
    driver, stamps_only, kills = Driver(database_url, tmp_path / "errors"), sized(True, False), 0
    try:
        while (ended := driver.run((kills + 1, stamps_only, 0.0)))[0] == [-9]:
            assert ended[1] == first
            kills += 1
            if kills in (1, len(later)):
                assert contents(database) == held
                assert schema(database) == looks
    finally:
        driver.close()
    assert ended == ([100 + len(later)], later[-1]), (tmp_path / "errors").read_text()
    assert kills >= len(later)
    assert lost(held, contents(database), only_common=True) == set()
    assert drift(database) == []
    figures |= {"store": database.dialect, "kills": kills, "loss": 0}


@pytest.mark.timeout(300)
def test_of_several_that_upgrade_at_once_one_does_it_and_the_others_wait(
    database: Database, database_url: str, tmp_path: Path, figures: dict[str, Any]
) -> None:
    """They wait longer than for any other lock: the first takes three seconds, a lock's patience is one."""
    first, *later = [revision for revision, _ in revisions(database)]
    migrate.downgrade(database, first)
    fill(database, first, 30)
    held = contents(database)
    driver = Driver(database_url, tmp_path / "errors")
    try:
        ended, version = driver.run(*[(0, True, 3.0)] * 3)
    finally:
        driver.close()
    assert sorted(ended) == [100, 100, 100 + len(later)], (tmp_path / "errors").read_text()
    assert version == later[-1]
    assert lost(held, contents(database), only_common=True) == set()
    assert drift(database) == []
    figures |= {"store": database.dialect, "processes": 3, "upgraded_by": 1}
