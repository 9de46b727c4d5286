"""One trial at a time; it ends in the same transaction as what makes it impossible, and its past cannot be changed."""

from datetime import timedelta

import pytest
import sqlalchemy as sa

from service.adapters import garbage
from service.adapters import service as adapters
from service.adapters.integrity import mark_corrupt, verify
from service.adapters.moves import MoveRequest
from service.adapters.states import AdapterState
from service.audit import repository as audit
from service.errors import Conflict, NotFound, PreconditionFailed, StoreUnavailable
from service.trials import service as trials
from service.trials.repository import TrialRow
from service.trials.service import Wanted
from service.trials.states import Deed, EndReason, Kind
from service.trials.tables import trial_moves
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock

ADMIN = MoveRequest("key:admin")


def run(
    shelf: Shelf, version: str, kind: Kind = Kind.CANARY, share: float = 0.1, request: MoveRequest = ADMIN
) -> TrialRow:
    return trials.run(shelf.database, shelf.clock, shelf.artifacts, Wanted(version, kind, share), request)


def last(shelf: Shelf) -> tuple[int, Deed, EndReason | None]:
    row = trials.read(shelf.database).history[0]
    return row.revision, row.deed, row.because


def deeds(shelf: Shelf) -> list[str]:
    with shelf.database.read() as connection:
        found = audit.page(connection, limit=100, before=None)
    return [entry["action"] for entry in reversed(found) if entry["action"].startswith("trial.")]


def promote(shelf: Shelf, version: str) -> None:
    adapters.promote(shelf.database, shelf.clock, shelf.artifacts, version, ADMIN)


@pytest.fixture
def base(shelf: Shelf) -> str:
    return shelf.active_base()


def test_a_trial_starts_changes_and_ends_and_all_of_it_is_remembered(shelf: Shelf, base: str, clock: SetClock) -> None:
    version = shelf.adapter(base, 0.1)
    assert (trials.read(shelf.database).revision, trials.read(shelf.database).trial) == (0, None)
    first = run(shelf, version, Kind.SHADOW, 0.05)
    clock.advance(hours=1)
    second = run(shelf, version, Kind.CANARY, 0.2)
    trials.end(shelf.database, clock, ADMIN)

    found = trials.read(shelf.database)
    assert (found.revision, found.trial) == (3, None)
    assert [row.deed for row in reversed(found.history)] == [Deed.START, Deed.CHANGE, Deed.END]
    assert [(row.kind, row.share) for row in reversed(found.history)][:2] == [(Kind.SHADOW, 0.05), (Kind.CANARY, 0.2)]
    assert {row.salt for row in found.history} == {first.salt}
    assert second.started_at == first.started_at < second.created_at
    assert found.history[0].because is EndReason.ASKED
    assert deeds(shelf) == ["trial.start", "trial.change", "trial.end"]


def test_the_next_trial_picks_other_users(shelf: Shelf, base: str) -> None:
    version = shelf.adapter(base, 0.1)
    salts = set()
    for _ in range(2):
        salts.add(run(shelf, version).salt)
        trials.end(shelf.database, shelf.clock, ADMIN)
    assert len(salts) == 2


def test_one_candidate_at_a_time_and_only_one_that_could_serve(shelf: Shelf, base: str) -> None:
    version, other = shelf.adapter(base, 0.1), shelf.adapter(base, 0.2)
    refused = shelf.adapter(base, 0.3, AdapterState.REFUSED)
    foreign = shelf.adapter(shelf.base(0.7), 0.4)
    with pytest.raises(Conflict, match="refused"):
        run(shelf, refused)
    with pytest.raises(Conflict, match="made for base"):
        run(shelf, foreign)
    with pytest.raises(NotFound):
        run(shelf, "a000009-000000000000")
    with pytest.raises(Conflict, match="no adapter is on trial"):
        trials.end(shelf.database, shelf.clock, ADMIN)
    run(shelf, version)
    with pytest.raises(Conflict, match="end that first"):
        run(shelf, other)
    trials.end(shelf.database, shelf.clock, ADMIN)
    promote(shelf, other)
    with pytest.raises(Conflict, match="is active"):
        run(shelf, other)


def test_a_damaged_candidate_is_refused_and_marked(shelf: Shelf, base: str) -> None:
    version = shelf.adapter(base, 0.1)
    shelf.damage(version)
    with pytest.raises(Conflict):
        run(shelf, version)
    assert adapters.read_adapter(shelf.database, version).adapter.state is AdapterState.CORRUPT
    assert trials.read(shelf.database).trial is None


def test_an_end_that_has_passed_is_refused_and_one_that_passes_ends_it(
    shelf: Shelf, base: str, clock: SetClock
) -> None:
    version = shelf.adapter(base, 0.1)
    with pytest.raises(Conflict, match="ended already"):
        trials.run(shelf.database, clock, shelf.artifacts, Wanted(version, Kind.CANARY, 0.1, clock()), ADMIN)
    until = clock() + timedelta(hours=1)
    trials.run(shelf.database, clock, shelf.artifacts, Wanted(version, Kind.CANARY, 0.1, until), ADMIN)
    assert trials.end_if_over(shelf.database, clock) is None
    clock.advance(hours=1)
    assert [trials.end_if_over(shelf.database, clock) for _ in range(2)] == [EndReason.EXPIRED, None]
    assert last(shelf) == (2, Deed.END, EndReason.EXPIRED)


def test_a_stale_revision_is_refused_and_a_repetition_is_answered_again(shelf: Shelf, base: str) -> None:
    version = shelf.adapter(base, 0.1)
    keyed = MoveRequest("key:admin", None, 0, "once")
    first = run(shelf, version, request=keyed)
    assert run(shelf, version, request=keyed) == first
    with pytest.raises(Conflict, match="Idempotency-Key"):
        run(shelf, version, share=0.5, request=keyed)
    with pytest.raises(PreconditionFailed, match="revision is 1, not 0"):
        run(shelf, version, share=0.5, request=MoveRequest("key:admin", None, 0))
    ending = MoveRequest("key:admin", None, 1, "end once")
    ended = trials.end(shelf.database, shelf.clock, ending)
    assert trials.end(shelf.database, shelf.clock, ending) == ended
    assert len(trials.read(shelf.database).history) == 2


def test_promoting_the_candidate_ends_it(shelf: Shelf, base: str) -> None:
    version = shelf.adapter(base, 0.1)
    run(shelf, version)
    promote(shelf, version)
    assert last(shelf) == (2, Deed.END, EndReason.PROMOTED)


def test_promoting_and_rolling_back_others_does_not(shelf: Shelf, base: str) -> None:
    version, one, two = (shelf.adapter(base, value) for value in (0.1, 0.2, 0.3))
    promote(shelf, one)
    run(shelf, version)
    promote(shelf, two)
    adapters.rollback(shelf.database, shelf.clock, shelf.artifacts, ADMIN)
    assert last(shelf) == (1, Deed.START, None)


def test_rolling_back_to_the_candidate_ends_it(shelf: Shelf, base: str) -> None:
    version, next_one = shelf.adapter(base, 0.1), shelf.adapter(base, 0.2)
    promote(shelf, version)
    promote(shelf, next_one)
    run(shelf, version)
    adapters.rollback(shelf.database, shelf.clock, shelf.artifacts, ADMIN)
    assert last(shelf) == (2, Deed.END, EndReason.PROMOTED)


def test_another_base_ends_it(shelf: Shelf, base: str) -> None:
    run(shelf, shelf.adapter(base, 0.1))
    adapters.activate_base(shelf.database, shelf.clock, shelf.base(0.7), actor="cli")
    assert last(shelf) == (2, Deed.END, EndReason.BASE_CHANGED)


def test_a_candidate_that_is_found_damaged_ends_it(shelf: Shelf, base: str) -> None:
    version = shelf.adapter(base, 0.1)
    run(shelf, version)
    shelf.damage(version)
    with pytest.raises(Conflict):
        verify(shelf.database, shelf.clock, shelf.artifacts, version, actor="cli")
    assert last(shelf) == (2, Deed.END, EndReason.CORRUPT)
    mark_corrupt(shelf.database, shelf.clock, version, "again", actor="cli")
    assert last(shelf)[0] == 2


def test_garbage_collection_keeps_the_candidate_until_the_trial_ends(shelf: Shelf, base: str, clock: SetClock) -> None:
    version = shelf.adapter(base, 0.1)
    run(shelf, version)
    clock.advance(days=30)
    newer = [shelf.adapter(base, value) for value in (0.2, 0.3)]

    def collect() -> list[str]:
        done = garbage.collect(
            shelf.database, clock, shelf.artifacts, keep=1, grace=timedelta(days=1), attempts=3, actor="cli"
        )
        return list(done.adapters)

    assert collect() == []
    trials.end(shelf.database, clock, ADMIN)
    assert collect() == [version]
    assert newer


def test_the_past_of_trials_cannot_be_changed(shelf: Shelf, base: str) -> None:
    run(shelf, shelf.adapter(base, 0.1))
    for statement in (trial_moves.update().values(share=1.0), trial_moves.delete()):
        with pytest.raises((sa.exc.DBAPIError, StoreUnavailable)), shelf.database.write() as connection:
            connection.execute(statement)
