"""The updater's upkeep: partitions ahead, old rows gone, one process at a time, and never in the way of updates."""

from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.events import partitions
from service.events.partitions import WIDTH
from service.kit.db import Database
from service.kit.lease_keeper import held
from service.settings import Settings
from service.windows.states import WindowState
from tests.conftest import SetClock
from tests.events.test_service import stored_ids
from tests.windows.test_retention import seal, write
from trainer.upkeep import RETENTION_LEASE, upkeep

DAY = timedelta(days=1)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, database_url=database_url, event_retention=DAY, event_partition=DAY)


def test_it_makes_partitions_and_removes_what_is_old(database: Database, clock: SetClock, settings: Settings) -> None:
    write(database, clock, "old")
    seal(database, clock, settings, WindowState.PROMOTED)
    if database.dialect == "postgresql":
        with database.write() as connection:
            connection.execute(sa.text("SELECT setval('events_seq_seq', :seq)"), {"seq": 2 * WIDTH})
    write(database, clock, "young")
    clock.advance(days=3)

    upkeep(database, clock, settings, "me")

    assert stored_ids(database) == ["young"]
    if database.dialect == "postgresql":
        with database.read() as connection:
            assert partitions.every(connection)[-1].first > 2 * WIDTH + 1
            assert connection.scalar(sa.text("SELECT count(*) FROM events_default")) == 0


def test_only_one_process_removes(database: Database, clock: SetClock, settings: Settings) -> None:
    write(database, clock, "old")
    seal(database, clock, settings)
    clock.advance(days=3)
    with held(database, RETENTION_LEASE, "another", settings.lease_duration):
        upkeep(database, clock, settings, "me")
        assert stored_ids(database) == ["old"]
    upkeep(database, clock, settings, "me")
    assert stored_ids(database) == []


def test_a_store_that_is_away_is_no_reason_to_end(clock: SetClock, tmp_path: Path) -> None:
    away = Database("postgresql://nobody@127.0.0.1:1/none", lock_timeout_s=1)
    upkeep(away, clock, Settings(home=tmp_path, event_retention=DAY), "me")
    away.close()
