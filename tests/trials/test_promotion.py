"""The updater's canary is promoted when it has held: by who holds the lease, and only what is on trial just then."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from service.adapters import repository as adapters
from service.adapters import service as registry
from service.adapters.artifacts import ArtifactStore, VerifiedAdapter
from service.adapters.moves import MoveRequest
from service.adapters.states import AdapterState
from service.errors import LeaseLost
from service.kit.lease_keeper import held
from service.kit.leases import Lease
from service.trials import service as trials
from service.trials.promotion import UPDATER, Held, promote_if_held
from service.trials.service import Wanted
from service.trials.states import EndReason, Kind
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock
from tests.leases import run_out

ADMIN = MoveRequest("key:admin")
LEASE, LONG, DAY = "updater", timedelta(minutes=5), timedelta(days=1)


@pytest.fixture
def candidate(shelf: Shelf, clock: SetClock) -> str:
    """On trial by the updater for a day."""
    base = shelf.active_base()
    version = shelf.adapter(base, 0.1, AdapterState.PASSED)
    trials.run(shelf.database, shelf.clock, shelf.artifacts, Wanted(version, Kind.CANARY, 0.5), MoveRequest(UPDATER))
    clock.advance(days=1)
    return version


@pytest.fixture
def lease(shelf: Shelf) -> Iterator[Lease]:
    with held(shelf.database, LEASE, "mine", LONG) as own:
        assert own is not None
        yield own


def serving(shelf: Shelf) -> str | None:
    with shelf.database.read() as connection:
        return adapters.read_pointer(connection).adapter_version


def decide(shelf: Shelf, lease: Lease, artifacts: ArtifactStore | None = None) -> Held:
    return promote_if_held(shelf.database, shelf.clock, artifacts or shelf.artifacts, DAY, lease)


class Meanwhile(ArtifactStore):
    """Something happens when an adapter's files have just been read."""

    def __init__(self, shelf: Shelf, then: Callable[[], object]) -> None:
        super().__init__(shelf.artifacts.root)
        self._then = then

    def verify_adapter(self, *what: Any) -> VerifiedAdapter:
        found = super().verify_adapter(*what)
        self._then()
        return found


def test_it_waits_for_its_time_and_is_promoted_then(
    shelf: Shelf, candidate: str, clock: SetClock, lease: Lease
) -> None:
    clock.advance(minutes=-1)
    assert (decide(shelf, lease), serving(shelf)) == (Held.WAITING, None)
    clock.advance(minutes=1)
    assert (decide(shelf, lease), serving(shelf)) == (Held.PROMOTED, candidate)
    assert trials.read(shelf.database).history[0].because is EndReason.PROMOTED
    assert decide(shelf, lease) is Held.NONE


def test_who_lost_the_lease_promotes_nothing(shelf: Shelf, candidate: str, lease: Lease) -> None:
    run_out(shelf.database, LEASE)
    with held(shelf.database, LEASE, "another", LONG), pytest.raises(LeaseLost):
        decide(shelf, lease)
    assert serving(shelf) is None
    assert trials.read(shelf.database).trial is not None


def test_a_trial_that_is_ended_while_the_files_are_read_is_not_promoted(
    shelf: Shelf, candidate: str, lease: Lease
) -> None:
    slow = Meanwhile(shelf, lambda: trials.end(shelf.database, shelf.clock, ADMIN, EndReason.LIVE_METRIC))
    assert decide(shelf, lease, slow) is Held.NONE
    assert serving(shelf) is None


def test_a_trial_that_somebody_takes_over_meanwhile_is_not_promoted(shelf: Shelf, candidate: str, lease: Lease) -> None:
    wanted = Wanted(candidate, Kind.CANARY, 0.9)
    slow = Meanwhile(shelf, lambda: trials.run(shelf.database, shelf.clock, shelf.artifacts, wanted, ADMIN))
    assert decide(shelf, lease, slow) is Held.NONE
    assert serving(shelf) is None


def test_files_that_are_out_of_reach_are_waited_for(shelf: Shelf, candidate: str, lease: Lease) -> None:
    there = shelf.artifacts.root / "adapters"
    away = there.rename(there.with_name("away"))
    assert decide(shelf, lease) is Held.WAITING
    assert trials.read(shelf.database).trial is not None
    away.rename(there)
    assert (decide(shelf, lease), serving(shelf)) == (Held.PROMOTED, candidate)


def test_what_was_compared_with_an_adapter_that_serves_no_more_is_not_promoted(
    shelf: Shelf, candidate: str, lease: Lease
) -> None:
    """Promoted, it would undo somebody's rollback: it learnt on from what was rolled back."""
    with shelf.database.read() as connection:
        base = adapters.read_pointer(connection).base_id
    assert base is not None
    other = shelf.adapter(base, 0.2, AdapterState.PASSED)
    registry.promote(shelf.database, shelf.clock, shelf.artifacts, other, ADMIN)
    assert trials.read(shelf.database).trial is not None
    assert (decide(shelf, lease), serving(shelf)) == (Held.NONE, other)
    assert trials.read(shelf.database).history[0].because is EndReason.CONTROL_CHANGED


def test_damaged_files_end_it(shelf: Shelf, candidate: str, lease: Lease) -> None:
    shelf.damage(candidate)
    assert (decide(shelf, lease), serving(shelf)) == (Held.NONE, None)
    assert trials.read(shelf.database).history[0].because is EndReason.CORRUPT


def test_what_cannot_be_promoted_any_more_is_ended_and_not_waited_for(
    shelf: Shelf, candidate: str, clock: SetClock, lease: Lease
) -> None:
    """Its files cannot be read, and its time was up besides."""
    ends_at = clock() + timedelta(hours=1)
    wanted = Wanted(candidate, Kind.CANARY, 0.5, ends_at)
    trials.run(shelf.database, clock, shelf.artifacts, wanted, MoveRequest(UPDATER))
    clock.advance(hours=2)
    there = shelf.artifacts.root / "adapters"
    there.rename(there.with_name("away"))
    assert decide(shelf, lease) is Held.NONE
    assert trials.read(shelf.database).history[0].because is EndReason.EXPIRED
