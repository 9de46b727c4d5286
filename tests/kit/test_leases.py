"""One holder at a time, and a late one is recognised by its fence."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from service.errors import LeaseLost, StoreUnavailable
from service.kit import leases
from service.kit.clock import utc_now
from service.kit.db import Database
from service.kit.leases import Lease
from tests.leases import run_out, set_clock

HALF_MINUTE = timedelta(seconds=30)


def acquire(database: Database, owner: str) -> Lease | None:
    with database.write() as connection:
        return leases.acquire(connection, "updater", owner, HALF_MINUTE)


def held(database: Database, lease: Lease) -> bool:
    try:
        with database.write() as connection:
            leases.check(connection, lease)
    except LeaseLost:
        return False
    return True


def test_the_second_comer_gets_nothing_until_the_first_ones_time_is_over(database: Database) -> None:
    first = acquire(database, "a")
    assert first is not None
    assert acquire(database, "b") is None

    run_out(database)
    second = acquire(database, "b")

    assert second is not None
    assert second.fence == first.fence + 1
    assert held(database, second)
    assert not held(database, first)


def test_the_holder_extends_under_the_same_fence_but_not_after_its_time(database: Database) -> None:
    first = acquire(database, "a")
    extended = acquire(database, "a")
    assert first is not None
    assert extended is not None
    assert extended.fence == first.fence
    assert extended.expires_at >= first.expires_at

    run_out(database)
    again = acquire(database, "a")

    assert again is not None
    assert again.fence == first.fence + 1
    assert not held(database, extended)


def test_a_lease_given_back_is_free_at_once_and_a_lost_one_cannot_be_given_back(database: Database) -> None:
    first = acquire(database, "a")
    assert first is not None
    with database.write() as connection:
        leases.release(connection, first)
    second = acquire(database, "b")
    assert second is not None
    with database.write() as connection:
        leases.release(connection, first)

    assert held(database, second)
    with pytest.raises(LeaseLost), database.write() as connection:
        leases.check(connection, first)


def test_a_holder_that_is_paused_inside_a_transaction_holds_nobody_up(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database.dialect == "sqlite":
        pytest.skip("its locks are those of a process on the same machine")
    monkeypatch.setattr(leases, "PAUSED_S", 0.3)

    def pause() -> None:
        with database.write() as connection:
            paused = leases.acquire(connection, "updater", "a", HALF_MINUTE)
            assert paused is not None
            time.sleep(1)
            assert acquire(database, "b") is not None
            leases.check(connection, paused)

    with pytest.raises(StoreUnavailable):
        pause()


@pytest.mark.parametrize("change", [timedelta(hours=1), -timedelta(hours=1)])
def test_a_stores_clock_that_is_set_lets_one_holder_write_and_nobody_wait(
    database: Database, change: timedelta
) -> None:
    first = acquire(database, "a")
    assert first is not None
    set_clock(database, change)  # and the holder is gone
    second = acquire(database, "b")
    assert second is not None
    assert second.fence == first.fence + 1
    assert held(database, second)
    assert not held(database, first)


def test_a_holder_outlives_a_stores_clock_that_is_set_back(database: Database) -> None:
    first = acquire(database, "a")
    assert first is not None
    set_clock(database, -timedelta(hours=1))
    assert held(database, first)
    renewed = acquire(database, "a")
    assert renewed is not None
    assert renewed.fence == first.fence
    assert acquire(database, "b") is None


def test_a_lease_lasts_as_long_by_the_stores_clock(database: Database) -> None:
    with database.write() as connection:
        before = leases.store_time(connection)
        lease = leases.acquire(connection, "updater", "a", HALF_MINUTE)
        after = leases.store_time(connection)
    assert lease is not None
    assert before + HALF_MINUTE <= lease.expires_at <= after + HALF_MINUTE
    assert abs(before - utc_now()) < timedelta(minutes=1)  # aware, and of today


def test_of_two_who_are_first_at_once_one_gets_it(database: Database) -> None:
    with database.write() as connection:
        first = leases.acquire(connection, "updater", "a", HALF_MINUTE)
        with ThreadPoolExecutor(1) as other:
            second = other.submit(acquire, database, "b")
            time.sleep(0.2)  # it finds no row either, and waits for this transaction
            connection.commit()
            assert second.result(30) is None
    assert first is not None
    assert first.fence == 1
