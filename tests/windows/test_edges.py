"""Windows at their limits, and every column that the end of an attempt writes."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.engine import Connection

from service.adapters.repository import NewBase
from service.audit import repository as audit
from service.errors import Conflict, NotFound
from service.kit import leases
from service.kit.db import Database
from service.kit.leases import Lease
from service.settings import Settings
from service.windows import service
from service.windows.repository import Window
from service.windows.sealing import finish
from service.windows.service import UPDATER_LEASE, Outcome
from service.windows.states import OUTCOMES, TRANSITIONS, Pending, SealedBecause, WindowState, allowed, due, settled
from tests.adapters.tiny import EARLIER, Shelf
from tests.conftest import SetClock
from tests.windows.streams import NOON, write_events


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path,
        database_url=database_url,
        window_attempts=2,
        window_retry_pause=timedelta(0),
        window_min_events=2,
        window_max_events=4,
    )


def sealed(database: Database, clock: SetClock, settings: Settings, count: int = 3) -> Window:
    write_events(database, count)
    window = service.seal(database, clock, settings, SealedBecause.MANUAL)
    assert window is not None
    return window


@pytest.fixture
def lease(database: Database, clock: SetClock) -> Lease:
    with database.write() as connection:
        lease = leases.acquire(connection, UPDATER_LEASE, "updater-1", timedelta(seconds=30))
    assert lease is not None
    return lease


def test_the_horizon_is_the_last_event(database: Database) -> None:
    assert service.horizon(database) == 0
    written = write_events(database, 3)
    assert service.horizon(database) == max(written)


def test_a_window_is_due_by_count_and_by_age_of_its_first_event(
    database: Database, clock: SetClock, settings: Settings
) -> None:
    assert service.due(database, clock, settings) is None
    write_events(database, 1, clock.now)
    clock.advance(hours=2)
    assert service.due(database, clock, settings) is None  # too few
    write_events(database, 1, clock.now)
    assert service.due(database, clock, settings) is SealedBecause.AGE
    write_events(database, 2, clock.now)
    assert service.due(database, clock, settings) is SealedBecause.COUNT


def test_the_open_window_is_counted_up_to_the_limit_only(database: Database, settings: Settings) -> None:
    write_events(database, 9)
    page = service.read_page(database, settings)
    assert (page.open.events, page.open.after_seq, page.next_before) == (4, 0, None)


@pytest.mark.parametrize(
    ("events", "age", "found"),
    [
        (9, timedelta(0), None),
        (10, timedelta(0), SealedBecause.COUNT),
        (2, timedelta(minutes=59, seconds=59), None),
        (2, timedelta(hours=1), SealedBecause.AGE),
        (1, timedelta(hours=1), None),
    ],
)
def test_when_a_window_is_due(events: int, age: timedelta, found: SealedBecause | None) -> None:
    limits = {"max_age": timedelta(hours=1), "max_events": 10, "min_events": 2}
    assert due(Pending(0, events, NOON), NOON + age, **limits) is found  # type: ignore[arg-type]  # three kinds
    assert due(Pending(0, 0, None), NOON + age, **limits) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("state", list(WindowState))
@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_what_is_settled_is_what_ended_or_failed_too_often(state: WindowState, attempts: int) -> None:
    ended = state in OUTCOMES or state is WindowState.BASE
    assert settled(state, attempts, 2) is (ended or (state is WindowState.FAILED and attempts >= 2))


def test_nothing_leaves_an_end() -> None:
    assert {old for old in WindowState if not TRANSITIONS[old]} == OUTCOMES | {WindowState.BASE}
    assert all(allowed(WindowState.TRAINING, new) for new in (*OUTCOMES, WindowState.TRAINING, WindowState.FAILED))
    assert [new for new in WindowState if allowed(WindowState.SEALED, new)] == [
        WindowState.TRAINING,
        WindowState.SKIPPED,
    ]
    assert [new for new in WindowState if allowed(WindowState.FAILED, new)] == [
        WindowState.TRAINING,
        WindowState.SKIPPED,
    ]


def test_closing_by_hand_is_on_record(database: Database, clock: SetClock, settings: Settings) -> None:
    write_events(database, 3)
    window = service.close(database, clock, settings, actor="key:admin")
    assert (window.state, window.sealed_because, window.events, window.attempts) == ("sealed", "manual", 3, 0)
    assert window.sealed_at == clock.now
    with database.read() as connection:
        [entry] = audit.page(connection, limit=9, before=None)
    assert (entry["actor"], entry["action"], entry["subject"]) == ("key:admin", "window.close", str(window.window_id))
    assert entry["details"] == {"through_seq": window.through_seq, "events": 3, "because": "manual"}
    assert entry["created_at"] == clock.now
    with pytest.raises(Conflict, match="nothing to close"):
        service.close(database, clock, settings, actor="key:admin")
    with database.read() as connection:
        assert len(audit.page(connection, limit=9, before=None)) == 1


def test_a_seal_by_count_takes_the_first_events_and_any_other_takes_all(
    database: Database, clock: SetClock, settings: Settings
) -> None:
    written = write_events(database, 9)
    first = service.seal(database, clock, settings, SealedBecause.COUNT)
    second = service.seal(database, clock, settings, SealedBecause.AGE, through_seq=written[6])
    third = service.seal(database, clock, settings, SealedBecause.AGE)
    assert first is not None
    assert second is not None
    assert third is not None
    found = [(window.after_seq, window.through_seq, window.events) for window in (first, second, third)]
    assert found == [(0, written[3], 4), (written[3], written[6], 3), (written[6], written[8], 2)]
    assert service.seal(database, clock, settings, SealedBecause.AGE) is None
    with database.read() as connection:
        assert audit.page(connection, limit=9, before=None) == []  # nobody asked for these


def test_a_base_takes_the_windows_that_it_was_trained_on(shelf: Shelf, settings: Settings, clock: SetClock) -> None:
    waiting = sealed(shelf.database, clock, settings)
    later = sealed(shelf.database, clock, settings)
    made, seen = shelf.publish_base(), []

    def first(connection: Connection) -> None:
        seen.append(service.repository.last_through_seq(connection))

    clock.advance(hours=1)
    service.install_base(
        shelf.database,
        clock,
        NewBase(made.id, made.digest, EARLIER),
        through_seq=waiting.through_seq,
        actor="cli",
        first=first,
    )
    skipped, kept = (service.read_window(shelf.database, window.window_id) for window in (waiting, later))
    assert seen == [later.through_seq]
    assert (skipped.state, skipped.verdict, skipped.finished_at) == ("skipped", "skipped", clock.now)
    assert skipped.reason == f"base {made.id} was trained on these events"
    assert kept.state is WindowState.SEALED


def test_a_failed_attempt_keeps_why_and_how_far_it_came(
    database: Database, clock: SetClock, settings: Settings, lease: Lease
) -> None:
    window = sealed(database, clock, settings)
    assert service.claim(database, clock, settings, lease, method="sd_lora") is not None
    clock.advance(seconds=5)
    assert service.fail(database, clock, settings, window.window_id, lease, "x" * 2001, steps=[{"name": "fit"}])
    failed = service.read_window(database, window.window_id)
    assert (failed.state, failed.verdict, failed.attempts) == ("failed", "failed", 1)
    assert (failed.reason, failed.finished_at) == ("x" * 2000, clock.now)
    assert (failed.steps, failed.method) == ([{"name": "fit"}], "sd_lora")
    again = service.claim(database, clock, settings, lease)
    assert again is not None
    assert (again.state, again.verdict, again.reason, again.finished_at) == ("training", None, None, None)
    assert (again.steps, again.statistics, again.attempts, again.started_at) == ([], {}, 2, clock.now)
    assert (again.method, again.lease_fence) == (settings.method, lease.fence)
    service.report_steps(database, window.window_id, lease, [{"name": "gate"}])
    assert not service.fail(database, clock, settings, window.window_id, lease, "once more")
    given_up = service.read_window(database, window.window_id)
    assert (given_up.steps, given_up.reason) == ([{"name": "gate"}], "once more")
    assert service.claim(database, clock, settings, lease) is None


def test_a_window_whose_updaters_were_lost_says_so(
    database: Database, clock: SetClock, settings: Settings, lease: Lease
) -> None:
    window = sealed(database, clock, settings)
    for _ in range(2):
        assert service.claim(database, clock, settings, lease) is not None
    clock.advance(seconds=5)
    assert service.claim(database, clock, settings, lease) is None
    found = service.read_window(database, window.window_id)
    assert (found.state, found.attempts, found.finished_at) == ("failed", 2, clock.now)
    assert found.reason == "the updater was lost while it worked on this window"


def test_an_outcome_writes_everything_that_it_says(
    shelf: Shelf, settings: Settings, clock: SetClock, lease: Lease
) -> None:
    window = sealed(shelf.database, clock, settings)
    assert service.claim(shelf.database, clock, settings, lease) is not None
    clock.advance(seconds=5)
    outcome = Outcome(
        WindowState.SKIPPED, "too few users", incumbent_version="a-x", steps=[{"name": "read"}], statistics={"users": 1}
    )
    assert service.conclude(shelf.database, clock, shelf.artifacts, window.window_id, lease, outcome) is None
    found = service.read_window(shelf.database, window.window_id)
    assert (found.state, found.verdict, found.reason) == ("skipped", "skipped", "too few users")
    assert (found.finished_at, found.incumbent_version, found.candidate_version) == (clock.now, "a-x", None)
    assert (found.steps, found.statistics) == ([{"name": "read"}], {"users": 1})


def test_a_candidate_of_another_window_is_refused_and_nothing_is_written(
    shelf: Shelf, settings: Settings, clock: SetClock, lease: Lease
) -> None:
    base_id = shelf.active_base()
    window = sealed(shelf.database, clock, settings)
    assert service.claim(shelf.database, clock, settings, lease) is not None
    other = shelf.candidate(base_id, 0.1, window.window_id + 1)
    with pytest.raises(Conflict, match=f"is not of window {window.window_id}"):
        service.conclude(
            shelf.database,
            clock,
            shelf.artifacts,
            window.window_id,
            lease,
            Outcome(WindowState.REFUSED, candidate=other),
        )
    assert service.read_window(shelf.database, window.window_id).state is WindowState.TRAINING


def test_a_window_that_ended_is_not_ended_again(database: Database, clock: SetClock, settings: Settings) -> None:
    window = sealed(database, clock, settings)
    with database.write() as connection:
        finish(connection, window, WindowState.SKIPPED, clock.now, reason="by hand")
    ended = service.read_window(database, window.window_id)
    with database.write() as connection, pytest.raises(Conflict, match="is skipped and cannot become training"):
        finish(connection, ended, WindowState.TRAINING, clock.now, reason=None)
    assert service.read_window(database, window.window_id) == ended


def test_pages_are_newest_first_and_lead_to_the_next(database: Database, clock: SetClock, settings: Settings) -> None:
    ids = [sealed(database, clock, settings).window_id for _ in range(4)]
    page = service.read_page(database, settings, limit=3)
    assert ([window.window_id for window in page.windows], page.next_before) == (ids[:0:-1], ids[1])
    last = service.read_page(database, settings, limit=3, before=page.next_before)
    assert ([window.window_id for window in last.windows], last.next_before) == ([ids[0]], None)
    whole = service.read_page(database, settings, limit=4)
    assert (len(whole.windows), whole.next_before) == (4, None)
    with pytest.raises(NotFound, match="no window 77"):
        service.read_window(database, 77)
