"""One holder at a time, and a late one is recognised by its fence."""

import time
from datetime import timedelta

import pytest

from service.errors import LeaseLost, StoreUnavailable
from service.kit import leases
from service.kit.db import Database
from service.kit.leases import Lease
from tests.conftest import SetClock

HALF_MINUTE = timedelta(seconds=30)


def acquire(database: Database, clock: SetClock, owner: str) -> Lease | None:
    with database.write() as connection:
        return leases.acquire(connection, "updater", owner, clock(), HALF_MINUTE)


def held(database: Database, clock: SetClock, lease: Lease) -> bool:
    try:
        with database.write() as connection:
            leases.check(connection, lease, clock())
    except LeaseLost:
        return False
    return True


def test_the_second_comer_gets_nothing_until_the_first_ones_time_is_over(database: Database, clock: SetClock) -> None:
    first = acquire(database, clock, "a")
    assert first is not None
    assert acquire(database, clock, "b") is None

    clock.advance(seconds=31)
    second = acquire(database, clock, "b")

    assert second is not None
    assert second.fence == first.fence + 1
    assert held(database, clock, second)
    assert not held(database, clock, first)


def test_the_holder_extends_under_the_same_fence_but_not_after_its_time(database: Database, clock: SetClock) -> None:
    first = acquire(database, clock, "a")
    clock.advance(seconds=20)
    extended = acquire(database, clock, "a")
    assert first is not None
    assert extended is not None
    assert extended.fence == first.fence
    assert extended.expires_at == clock() + HALF_MINUTE

    clock.advance(seconds=31)
    again = acquire(database, clock, "a")

    assert again is not None
    assert again.fence == first.fence + 1
    assert not held(database, clock, extended)


def test_a_lease_given_back_is_free_at_once_and_a_lost_one_cannot_be_given_back(
    database: Database, clock: SetClock
) -> None:
    first = acquire(database, clock, "a")
    assert first is not None
    with database.write() as connection:
        leases.release(connection, first, clock())
    second = acquire(database, clock, "b")
    assert second is not None
    with database.write() as connection:
        leases.release(connection, first, clock())

    assert held(database, clock, second)
    with pytest.raises(LeaseLost), database.write() as connection:
        leases.check(connection, first, clock())


def test_a_holder_that_is_paused_inside_a_transaction_holds_nobody_up(
    database: Database, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database.dialect == "sqlite":
        pytest.skip("its locks are those of a process on the same machine")
    monkeypatch.setattr(leases, "PAUSED_S", 0.3)

    def pause() -> None:
        with database.write() as connection:
            paused = leases.acquire(connection, "updater", "a", clock(), HALF_MINUTE)
            assert paused is not None
            time.sleep(1)
            assert acquire(database, clock, "b") is not None
            leases.check(connection, paused, clock())

    with pytest.raises(StoreUnavailable):
        pause()
