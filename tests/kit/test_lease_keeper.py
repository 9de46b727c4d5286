"""A lease is renewed while its block runs, given back at its end, and a lost one is left alone."""

import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from service.errors import LeaseLost
from service.kit import leases
from service.kit.db import Database
from service.kit.lease_keeper import Pulse, held
from service.kit.leases import Lease
from tests.leases import run_out
from tests.worlds import eventually

LONG = timedelta(hours=1)
NAME = "updater"


def stored(database: Database) -> Lease:
    with database.read() as connection:
        row = connection.execute(sa.select(leases.leases)).one()
    return Lease(row.name, row.owner, row.fence, row.expires_at)


def check(database: Database, lease: Lease) -> None:
    with database.write() as connection:
        leases.check(connection, lease)


def test_a_free_lease_is_held_for_the_block_and_given_back(database: Database) -> None:
    with held(database, NAME, "a", LONG) as lease:
        assert lease is not None
        assert lease.fence == 1
        check(database, lease)
    with pytest.raises(LeaseLost):
        check(database, lease)
    with held(database, NAME, "b", LONG) as lease:
        assert lease is not None
        assert lease.fence == 2  # another holder, another fence


def test_a_held_lease_is_not_given_to_another(database: Database) -> None:
    with held(database, NAME, "a", LONG), held(database, NAME, "b", LONG) as second:
        assert second is None
    assert stored(database).owner == "a"


def test_leases_of_other_names_are_independent(database: Database) -> None:
    with held(database, "one", "a", LONG) as one, held(database, "other", "b", LONG) as other:
        assert one is not None
        assert other is not None


def test_a_block_that_raises_gives_its_lease_back(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), held(database, NAME, "a", LONG):
        raise ZeroDivisionError
    with held(database, NAME, "b", LONG) as lease:
        assert lease is not None


def test_a_lease_is_renewed_under_its_fence_while_the_block_runs(database: Database) -> None:
    duration = timedelta(seconds=0.6)
    with held(database, NAME, "a", duration) as lease:
        assert lease is not None
        while datetime.now(UTC) <= lease.expires_at + duration:  # twice as long as it would last by itself
            check(database, lease)
            time.sleep(0.05)
        assert stored(database).fence == lease.fence
        assert stored(database).expires_at > lease.expires_at


def test_a_holder_that_slept_too_long_finds_its_lease_lost_and_leaves_it_alone(database: Database) -> None:
    with held(database, NAME, "sleeper", LONG) as lease:
        assert lease is not None
        run_out(database)
        with database.write() as connection:
            other = leases.acquire(connection, NAME, "other", LONG)
        assert other is not None
        with pytest.raises(LeaseLost):
            check(database, lease)
    check(database, other)  # the end of the sleeper's block took nothing from the other


def test_a_renewal_never_takes_back_what_another_holds(database: Database) -> None:
    with held(database, NAME, "sleeper", timedelta(seconds=0.15)):
        run_out(database)
        with database.write() as connection:
            other = leases.acquire(connection, NAME, "other", LONG)
        assert other is not None
        time.sleep(0.3)  # several renewals were due
        assert stored(database) == other


def test_the_renewing_thread_ends_with_the_block(database: Database) -> None:
    with held(database, NAME, "a", LONG):
        assert "lease-updater" in {thread.name for thread in threading.enumerate()}
    assert "lease-updater" not in {thread.name for thread in threading.enumerate()}


def test_a_lease_is_given_up_while_its_block_still_runs_once_that_shows_no_progress(database: Database) -> None:
    now, told = [0.0], list[float]()
    pulse = Pulse(timedelta(hours=1), told.append, clock=lambda: now[0])
    with held(database, NAME, "stuck", timedelta(seconds=0.6), pulse) as lease:
        assert lease is not None
        now[0] = 3_000.0
        pulse.beat()
        now[0] = 6_600.0
        time.sleep(0.5)  # renewals were due
        check(database, lease)
        assert told == []

        now[0] = 6_601.0
        eventually(lambda: bool(told))
        assert told == [3_601.0]
        eventually(lambda: _free(database))
        with pytest.raises(LeaseLost):
            check(database, lease)
        with pytest.raises(LeaseLost, match="no progress for 3600 s"):
            pulse.beat()  # what comes to itself now is too late


def _free(database: Database) -> bool:
    with database.write() as connection:
        return leases.acquire(connection, NAME, "other", LONG) is not None
