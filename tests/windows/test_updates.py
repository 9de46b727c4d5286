"""A window is worked on in order, under a lease, and has one outcome."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from service.adapters import garbage
from service.adapters import service as adapters
from service.adapters.moves import MoveRequest
from service.adapters.states import AdapterState
from service.errors import ArtifactError, Conflict, LeaseLost, NotFound, Overtaken, PreconditionFailed
from service.kit import leases
from service.kit.clock import utc_now
from service.kit.db import Database
from service.kit.leases import Lease
from service.settings import Settings
from service.telemetry import WINDOWS_GIVEN_UP
from service.trials import repository as trials
from service.users import service as users
from service.windows import service
from service.windows.repository import Evaluation, Window
from service.windows.service import UPDATER_LEASE, Outcome
from service.windows.states import SealedBecause, WindowState
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock
from tests.leases import run_out
from tests.windows.streams import write_events
from tests.worlds import row_counts

CANDIDATE = Evaluation("candidate", 20, 0.2, 0.3, 0.1, 0.15)
INCUMBENT = Evaluation("incumbent", 20, 0.1, 0.2, 0.05, 0.1)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, database_url=database_url, window_attempts=2, window_retry_pause=timedelta(0))


def lease_for(database: Database, owner: str = "updater-1") -> Lease:
    with database.write() as connection:
        lease = leases.acquire(connection, UPDATER_LEASE, owner, timedelta(seconds=30))
    assert lease is not None
    return lease


def sealed(database: Database, clock: SetClock, settings: Settings) -> Window:
    write_events(database, 5)
    window = service.seal(database, clock, settings, SealedBecause.MANUAL)
    assert window is not None
    return window


@pytest.fixture
def lease(database: Database) -> Lease:
    return lease_for(database)


def claim(shelf: Shelf, settings: Settings, lease: Lease) -> Window:
    window = service.claim(shelf.database, shelf.clock, settings, lease)
    assert window is not None
    return window


def conclude(shelf: Shelf, window: Window, lease: Lease, outcome: Outcome, revision: int | None = None) -> object:
    return service.conclude(
        shelf.database, shelf.clock, shelf.artifacts, window.window_id, lease, outcome, expected_revision=revision
    )


def promoted(shelf: Shelf, window: Window, value: float = 0.1) -> Outcome:
    base = adapters.read_registry(shelf.database).pointer.base_id
    assert base is not None
    candidate = shelf.candidate(base, value, window.window_id)
    steps = [{"step": "fit", "seconds": 1.5}]
    return Outcome(WindowState.PROMOTED, "better", candidate, None, [CANDIDATE, INCUMBENT], steps, {"users": 20})


def test_there_is_nothing_to_claim_without_a_window(shelf: Shelf, settings: Settings, lease: Lease) -> None:
    assert service.claim(shelf.database, shelf.clock, settings, lease) is None


def test_a_claim_names_what_the_update_starts_from(
    shelf: Shelf, settings: Settings, lease: Lease, clock: SetClock
) -> None:
    base = shelf.active_base()
    sealed(shelf.database, clock, settings)
    window = claim(shelf, settings, lease)
    assert (window.state, window.attempts, window.lease_fence) == (WindowState.TRAINING, 1, lease.fence)
    assert (window.base_id, window.incumbent_version, window.method) == (base, None, "peso")


def test_a_passed_window_is_concluded_whole(shelf: Shelf, settings: Settings, lease: Lease, clock: SetClock) -> None:
    shelf.active_base()
    sealed(shelf.database, clock, settings)
    window = claim(shelf, settings, lease)
    outcome = promoted(shelf, window)
    assert outcome.candidate is not None
    version = outcome.candidate.adapter_version
    clock.advance(seconds=10)
    conclude(shelf, window, lease, outcome, revision=1)
    done = service.read_window(shelf.database, window.window_id)
    assert (done.state, done.verdict, done.candidate_version) == (WindowState.PROMOTED, "promoted", version)
    assert (done.steps, done.statistics) == ([{"step": "fit", "seconds": 1.5}], {"users": 20})
    assert done.evaluations == [CANDIDATE, INCUMBENT]
    detail = adapters.read_adapter(shelf.database, version)
    assert (detail.active, detail.adapter.state, detail.revision) == (True, AdapterState.ACTIVE, 2)
    assert [(row.action, row.window_id) for row in detail.history] == [("window", window.window_id)]


def test_a_refused_candidate_is_kept_but_never_serves(
    shelf: Shelf, settings: Settings, lease: Lease, clock: SetClock
) -> None:
    base = shelf.active_base()
    sealed(shelf.database, clock, settings)
    window = claim(shelf, settings, lease)
    candidate = shelf.candidate(base, 0.1, window.window_id)
    conclude(shelf, window, lease, Outcome(WindowState.REFUSED, "worse_than_incumbent", candidate))
    detail = adapters.read_adapter(shelf.database, candidate.adapter_version)
    assert (detail.active, detail.adapter.state) == (False, AdapterState.REFUSED)
    assert adapters.read_registry(shelf.database).pointer.revision == 1


@pytest.mark.parametrize("verdict", [WindowState.NO_CHANGE, WindowState.SKIPPED, WindowState.REFUSED])
def test_a_window_may_end_without_an_adapter(
    shelf: Shelf, settings: Settings, lease: Lease, clock: SetClock, verdict: WindowState
) -> None:
    sealed(shelf.database, clock, settings)
    window = claim(shelf, settings, lease)
    assert conclude(shelf, window, lease, Outcome(verdict, "why")) is None
    done = service.read_window(shelf.database, window.window_id)
    assert (done.state, done.reason, done.finished_at) == (verdict, "why", clock())


def test_a_window_has_one_outcome(shelf: Shelf, settings: Settings, lease: Lease, clock: SetClock) -> None:
    sealed(shelf.database, clock, settings)
    window = claim(shelf, settings, lease)
    conclude(shelf, window, lease, Outcome(WindowState.NO_CHANGE))
    with pytest.raises(LeaseLost):
        conclude(shelf, window, lease, Outcome(WindowState.SKIPPED))
    assert service.claim(shelf.database, shelf.clock, settings, lease) is None


@pytest.mark.parametrize("verdict", [WindowState.FAILED, WindowState.BASE, WindowState.TRAINING, WindowState.PROMOTED])
def test_what_is_no_outcome_is_refused(
    shelf: Shelf, settings: Settings, lease: Lease, clock: SetClock, verdict: WindowState
) -> None:
    sealed(shelf.database, clock, settings)
    window = claim(shelf, settings, lease)
    with pytest.raises(Conflict):
        conclude(shelf, window, lease, Outcome(verdict))


def test_an_outcome_and_its_candidate_go_together(
    shelf: Shelf, settings: Settings, lease: Lease, clock: SetClock
) -> None:
    base = shelf.active_base()
    sealed(shelf.database, clock, settings)
    window = claim(shelf, settings, lease)
    with pytest.raises(Conflict, match="no other has"):
        conclude(shelf, window, lease, Outcome(WindowState.NO_CHANGE, candidate=shelf.candidate(base, 0.1, 1)))
    with pytest.raises(Conflict, match="is not of window"):
        conclude(shelf, window, lease, Outcome(WindowState.REFUSED, candidate=shelf.candidate(base, 0.1, 99)))
    assert service.read_window(shelf.database, window.window_id).state is WindowState.TRAINING


def test_a_candidate_that_learnt_from_an_erased_user_is_not_registered(
    shelf: Shelf, settings: Settings, lease: Lease, clock: SetClock
) -> None:
    base = shelf.active_base()
    sealed(shelf.database, clock, settings)
    window = claim(shelf, settings, lease)
    candidate = shelf.candidate(base, 0.1, window.window_id)
    with shelf.database.read() as connection:
        before = users.count_erasures(connection)
    users.erase_user(shelf.database, "u", clock=clock, actor="cli")
    both, other = (users.Learners(who, before) for who in (("t", "u"), ("t",)))
    with pytest.raises(Conflict, match="1 of the users that it learnt from were erased"):
        conclude(shelf, window, lease, Outcome(WindowState.REFUSED, "worse", candidate, learners=both))
    conclude(shelf, window, lease, Outcome(WindowState.REFUSED, "worse", candidate, learners=other))
    assert adapters.read_adapter(shelf.database, candidate.adapter_version).adapter.state is AdapterState.REFUSED


def test_a_candidate_on_trial_serves_its_share_and_is_not_promoted(
    shelf: Shelf, settings: Settings, lease: Lease, clock: SetClock
) -> None:
    base = shelf.active_base()
    sealed(shelf.database, clock, settings)
    window = claim(shelf, settings, lease)
    candidate = shelf.candidate(base, 0.1, window.window_id)
    assert conclude(shelf, window, lease, Outcome(WindowState.CANARY, "better", candidate)) is None
    with shelf.database.read() as connection:
        trial = trials.latest(connection)
    assert trial is not None
    assert (trial.adapter_version, trial.share) == (candidate.adapter_version, 0.1)
    assert adapters.read_registry(shelf.database).pointer.adapter_version is None
    assert service.read_window(shelf.database, window.window_id).state is WindowState.CANARY


def test_an_admin_who_moved_the_pointer_meanwhile_is_not_overruled(
    shelf: Shelf, settings: Settings, lease: Lease, clock: SetClock
) -> None:
    base = shelf.active_base()
    earlier = shelf.adapter(base, 0.9)
    adapters.promote(shelf.database, clock, shelf.artifacts, earlier, MoveRequest("key:admin"))
    sealed(shelf.database, clock, settings)
    window = claim(shelf, settings, lease)
    adapters.rollback(shelf.database, clock, shelf.artifacts, MoveRequest("key:admin"))
    outcome = promoted(shelf, window)
    with pytest.raises(PreconditionFailed):
        conclude(shelf, window, lease, outcome, revision=2)
    registry = adapters.read_registry(shelf.database)
    assert (registry.pointer.adapter_version, registry.pointer.revision) == (None, 3)
    assert [adapter.adapter_version for adapter in registry.adapters] == [earlier]
    assert service.read_window(shelf.database, window.window_id).evaluations == []


def test_what_was_learnt_while_a_base_was_built_is_told(
    shelf: Shelf, settings: Settings, lease: Lease, clock: SetClock
) -> None:
    sealed(shelf.database, clock, settings)
    horizon = service.horizon(shelf.database)
    sealed(shelf.database, clock, settings)
    last = sealed(shelf.database, clock, settings)
    for _ in range(2):
        conclude(shelf, claim(shelf, settings, lease), lease, Outcome(WindowState.SKIPPED))
    assert service.missed_by_base(shelf.database, 0) > service.missed_by_base(shelf.database, horizon) > 0
    assert service.missed_by_base(shelf.database, last.through_seq) == 0  # it waits, and is trained under the base


@pytest.mark.parametrize("verdict", [WindowState.NO_CHANGE, WindowState.SKIPPED, WindowState.REFUSED])
def test_what_was_judged_under_another_base_is_no_outcome(
    shelf: Shelf, settings: Settings, lease: Lease, clock: SetClock, verdict: WindowState
) -> None:
    base = shelf.active_base()
    sealed(shelf.database, clock, settings)
    window = claim(shelf, settings, lease)
    candidate = shelf.candidate(base, 0.1, window.window_id) if verdict is WindowState.REFUSED else None
    shelf.active_base(0.25)
    with pytest.raises(Overtaken, match="another base was activated meanwhile"):
        conclude(shelf, window, lease, Outcome(verdict, candidate=candidate))
    assert service.read_window(shelf.database, window.window_id).state is WindowState.TRAINING


def test_a_rollback_stays_until_the_next_passed_window(
    shelf: Shelf, settings: Settings, lease: Lease, clock: SetClock
) -> None:
    shelf.active_base()
    versions = []
    for value in (0.1, 0.2):
        sealed(shelf.database, clock, settings)
        window = claim(shelf, settings, lease)
        outcome = promoted(shelf, window, value)
        assert outcome.candidate is not None
        versions.append(outcome.candidate.adapter_version)
        conclude(shelf, window, lease, outcome)
    back = adapters.rollback(shelf.database, clock, shelf.artifacts, MoveRequest("key:admin"))
    assert back.to_version == versions[0]
    sealed(shelf.database, clock, settings)
    window = claim(shelf, settings, lease)
    assert window.incumbent_version == versions[0]
    conclude(shelf, window, lease, promoted(shelf, window, 0.3), revision=back.revision)
    assert adapters.read_registry(shelf.database).pointer.adapter_version not in (None, *versions)


def test_a_damaged_candidate_is_not_registered(shelf: Shelf, settings: Settings, lease: Lease, clock: SetClock) -> None:
    shelf.active_base()
    sealed(shelf.database, clock, settings)
    window = claim(shelf, settings, lease)
    outcome = promoted(shelf, window)
    assert outcome.candidate is not None
    shelf.damage(outcome.candidate.adapter_version)
    with pytest.raises(ArtifactError):
        conclude(shelf, window, lease, outcome)
    assert adapters.read_registry(shelf.database).adapters == []


def test_windows_are_claimed_strictly_in_order(shelf: Shelf, settings: Settings, lease: Lease, clock: SetClock) -> None:
    first, second = (sealed(shelf.database, clock, settings) for _ in range(2))
    assert claim(shelf, settings, lease).window_id == first.window_id
    assert service.fail(shelf.database, clock, settings, first.window_id, lease, "out of memory")
    window = claim(shelf, settings, lease)
    assert (window.window_id, window.attempts, window.reason) == (first.window_id, 2, None)
    assert not service.fail(shelf.database, clock, settings, first.window_id, lease, "out of memory")
    assert claim(shelf, settings, lease).window_id == second.window_id
    assert service.read_window(shelf.database, first.window_id).state is WindowState.FAILED


def test_a_lost_updaters_window_is_taken_over_and_its_late_writes_are_refused(
    shelf: Shelf, settings: Settings, lease: Lease, clock: SetClock
) -> None:
    """It can neither register, promote, fail, seal nor collect garbage."""
    base = shelf.active_base()
    sealed(shelf.database, clock, settings)
    window = claim(shelf, settings, lease)
    run_out(shelf.database)
    successor = lease_for(shelf.database, "updater-2")
    again = claim(shelf, settings, successor)
    assert (again.window_id, again.attempts, again.lease_fence) == (window.window_id, 2, successor.fence)
    write_events(shelf.database, 5)
    published = shelf.candidate(base, 0.5, window.window_id)
    leftover = shelf.artifacts.root / "adapters" / published.adapter_version
    os.utime(leftover / "manifest.json", (0, 0))

    def collect(leftovers: bool) -> object:
        return garbage.collect(
            shelf.database,
            clock,
            shelf.artifacts,
            keep=1,
            grace=timedelta(minutes=10),
            attempts=3,
            actor="updater",
            lease=lease,
            leftovers=leftovers,
        )

    before = row_counts(shelf.database)
    late: list[Callable[[], object]] = [
        lambda: conclude(shelf, window, lease, Outcome(WindowState.NO_CHANGE)),
        lambda: conclude(shelf, window, lease, promoted(shelf, window)),
        lambda: conclude(shelf, window, lease, Outcome(WindowState.REFUSED, "worse", published)),
        lambda: service.fail(shelf.database, clock, settings, window.window_id, lease, "late"),
        lambda: service.report_steps(shelf.database, window.window_id, lease, []),
        lambda: service.record_evaluation(shelf.database, clock, window.window_id, lease, CANDIDATE),
        lambda: service.claim(shelf.database, clock, settings, lease),
        lambda: service.seal(shelf.database, clock, settings, SealedBecause.AGE, lease=lease),
        lambda: collect(leftovers=False),
        lambda: collect(leftovers=True),
    ]
    for write in late:
        with pytest.raises(LeaseLost):
            write()
    assert row_counts(shelf.database) == before
    assert leftover.exists()
    assert adapters.read_registry(shelf.database).pointer.revision == 1
    assert service.seal(shelf.database, clock, settings, SealedBecause.AGE, lease=successor) is not None
    conclude(shelf, again, successor, promoted(shelf, again))


def test_a_collection_that_loses_its_lease_half_way_leaves_what_is_not_registered(
    shelf: Shelf, lease: Lease, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = shelf.active_base()
    published = shelf.candidate(base, 0.5)
    leftover = shelf.artifacts.root / "adapters" / published.adapter_version
    os.utime(leftover / "manifest.json", (0, 0))
    clock.now = utc_now()

    def lose(_: object) -> None:
        run_out(shelf.database)

    monkeypatch.setattr(garbage, "crash_point", lose)  # after the marks
    with pytest.raises(LeaseLost):
        garbage.collect(
            shelf.database,
            clock,
            shelf.artifacts,
            keep=1,
            grace=timedelta(minutes=10),
            attempts=3,
            actor="updater",
            lease=lease,
        )
    assert leftover.exists()


def test_a_failed_window_waits_and_holds_later_ones_up_until_it_is_given_up(
    shelf: Shelf, settings: Settings, lease: Lease, clock: SetClock
) -> None:
    settings = settings.model_copy(update={"window_retry_pause": timedelta(seconds=30), "window_attempts": 3})
    first, second = (sealed(shelf.database, clock, settings) for _ in range(2))
    for wait in (30, 60):
        assert claim(shelf, settings, lease).window_id == first.window_id
        service.fail(shelf.database, clock, settings, first.window_id, lease, "the disk is full")
        failed = service.read_window(shelf.database, first.window_id)
        assert service.next_attempt_of(failed, settings) == clock() + timedelta(seconds=wait)
        clock.advance(seconds=wait - 1)
        assert service.claim(shelf.database, clock, settings, lease) is None
        clock.advance(seconds=1)
    assert claim(shelf, settings, lease).attempts == 3
    given_up = WINDOWS_GIVEN_UP._value.get()
    service.fail(shelf.database, clock, settings, first.window_id, lease, "the disk is full")
    assert WINDOWS_GIVEN_UP._value.get() == given_up + 1
    assert service.next_attempt_of(service.read_window(shelf.database, first.window_id), settings) is None
    assert claim(shelf, settings, lease).window_id == second.window_id


def test_nobody_waits_by_hand_or_for_a_clock_that_was_set_back(
    shelf: Shelf, settings: Settings, lease: Lease, clock: SetClock
) -> None:
    settings = settings.model_copy(update={"window_retry_pause": timedelta(hours=2), "window_attempts": 9})
    window = sealed(shelf.database, clock, settings)

    def fail() -> None:
        assert service.fail(shelf.database, clock, settings, window.window_id, lease, "the disk is full")

    claim(shelf, settings, lease)
    fail()
    assert service.claim(shelf.database, clock, settings, lease) is None
    assert service.claim(shelf.database, clock, settings, lease, at_once=True) is not None
    fail()
    clock.advance(hours=-1)
    assert service.claim(shelf.database, clock, settings, lease) is not None


def test_a_window_that_kills_its_updaters_is_given_up(shelf: Shelf, settings: Settings, clock: SetClock) -> None:
    deadly, healthy = (sealed(shelf.database, clock, settings) for _ in range(2))
    for attempt in range(2):
        window = claim(shelf, settings, lease_for(shelf.database, f"updater-{attempt}"))
        assert window.window_id == deadly.window_id
        run_out(shelf.database)
    assert claim(shelf, settings, lease_for(shelf.database, "updater-3")).window_id == healthy.window_id
    given_up = service.read_window(shelf.database, deadly.window_id)
    assert (given_up.state, given_up.attempts) == (WindowState.FAILED, 2)
    assert "lost" in (given_up.reason or "")


def test_steps_and_evaluations_show_while_a_window_trains(
    shelf: Shelf, settings: Settings, lease: Lease, clock: SetClock
) -> None:
    sealed(shelf.database, clock, settings)
    window = claim(shelf, settings, lease)
    service.report_steps(shelf.database, window.window_id, lease, [{"step": "examples", "seconds": 0.5}])
    for evaluation in (INCUMBENT, CANDIDATE, INCUMBENT):
        service.record_evaluation(shelf.database, clock, window.window_id, lease, evaluation)
    shown = service.read_window(shelf.database, window.window_id)
    assert shown.steps == [{"step": "examples", "seconds": 0.5}]
    assert {evaluation.subject for evaluation in shown.evaluations} == {"candidate", "incumbent"}


def test_an_unknown_window_is_not_found(database: Database) -> None:
    with pytest.raises(NotFound):
        service.read_window(database, 1)
