"""The open window is closed by age, by count and by hand; tests/chaos/test_windows.py does it under fire."""

from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.adapters.repository import NewBase
from service.adapters.service import read_registry
from service.audit.tables import audit_log
from service.errors import Conflict, StoreUnavailable
from service.events.service import ingest
from service.events.tables import events
from service.kit.db import Database
from service.settings import Settings
from service.windows import service
from service.windows.repository import Window
from service.windows.states import SealedBecause, WindowState
from tests import worlds
from tests.adapters.tiny import EARLIER, Shelf
from tests.conftest import SetClock
from tests.windows.streams import NOON, insert_events, write_events


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path, database_url=database_url, window_max_events=10, window_min_events=3, window_max_age="PT1H"
    )


def windows_of(database: Database, settings: Settings) -> list[Window]:
    """Oldest first."""
    return service.read_page(database, settings, limit=100_000).windows[::-1]


def test_an_empty_window_is_not_sealed(database: Database, clock: SetClock, settings: Settings) -> None:
    assert service.seal(database, clock, settings, SealedBecause.MANUAL) is None
    write_events(database, 2)
    service.seal(database, clock, settings, SealedBecause.MANUAL)
    assert service.seal(database, clock, settings, SealedBecause.MANUAL) is None


def test_windows_follow_each_other_without_gap(database: Database, clock: SetClock, settings: Settings) -> None:
    first, second = write_events(database, 3), None
    one = service.seal(database, clock, settings, SealedBecause.MANUAL)
    second = write_events(database, 2)
    two = service.seal(database, clock, settings, SealedBecause.AGE)
    assert one is not None
    assert two is not None
    assert (one.after_seq, one.through_seq, one.events, one.state) == (0, first[-1], 3, WindowState.SEALED)
    assert (two.after_seq, two.through_seq, two.events) == (first[-1], second[-1], 2)


def test_a_seal_by_count_takes_exactly_that_many(database: Database, clock: SetClock, settings: Settings) -> None:
    sequences = write_events(database, 25)
    sealed = [service.seal(database, clock, settings, SealedBecause.COUNT) for _ in range(3)]
    assert [window.events for window in sealed if window] == [10, 10, 5]
    assert [window.through_seq for window in sealed if window] == [sequences[9], sequences[19], sequences[24]]


def test_a_seal_can_end_at_a_given_event(database: Database, clock: SetClock, settings: Settings) -> None:
    sequences = write_events(database, 5)
    window = service.seal(database, clock, settings, SealedBecause.MANUAL, through_seq=sequences[2])
    assert window is not None
    assert (window.through_seq, window.events) == (sequences[2], 3)
    assert service.seal(database, clock, settings, SealedBecause.MANUAL, through_seq=sequences[1]) is None


def test_a_window_is_due_by_age_then_by_count(database: Database, clock: SetClock, settings: Settings) -> None:
    assert service.due(database, clock, settings) is None
    write_events(database, 3, NOON)
    assert service.due(database, clock, settings) is None
    clock.advance(hours=1)
    assert service.due(database, clock, settings) is SealedBecause.AGE
    write_events(database, 7, NOON)
    assert service.due(database, clock, settings) is SealedBecause.COUNT


def test_an_event_of_long_ago_goes_into_the_open_window_and_a_sealed_one_never_changes(
    database: Database, clock: SetClock, settings: Settings
) -> None:
    old = [worlds.event(f"e{n}", "u", "i", clock() + timedelta(minutes=n)) for n in range(4)]
    worlds.send(database, clock, old)
    sealed = service.seal(database, clock, settings, SealedBecause.MANUAL)
    assert sealed is not None
    held = held_in(database, sealed)

    clock.advance(hours=2)
    late = [worlds.event(f"late{n}", "u", "i", clock() - timedelta(days=400 * n, hours=3)) for n in range(3)]
    worlds.send(database, clock, late)
    again = ingest(database, [*old, *late], clock=clock, clock_tolerance=settings.clock_tolerance)
    following = service.seal(database, clock, settings, SealedBecause.MANUAL)

    assert (again.accepted, again.duplicates) == (0, 7)
    assert following is not None
    assert held_in(database, sealed) == held == {f"e{n}" for n in range(4)}
    assert held_in(database, following) == {f"late{n}" for n in range(3)}
    assert windows_of(database, settings) == [sealed, following]


def held_in(database: Database, window: Window) -> set[str]:
    """The identifiers of a window's events."""
    within = sa.and_(events.c.seq > window.after_seq, events.c.seq <= window.through_seq)
    with database.read() as connection:
        return set(connection.scalars(sa.select(events.c.event_id).where(within)))


def test_closing_by_hand_is_audited_and_refused_when_there_is_nothing(
    database: Database, clock: SetClock, settings: Settings
) -> None:
    write_events(database, 1)
    window = service.close(database, clock, settings, actor="key:admin")
    with database.read() as connection:
        row = connection.execute(sa.select(audit_log)).one()
    assert (row.action, row.subject, row.actor) == ("window.close", str(window.window_id), "key:admin")
    with pytest.raises(Conflict, match="nothing to close"):
        service.close(database, clock, settings, actor="key:admin")


def test_a_base_takes_its_events_and_the_windows_within_them(
    shelf: Shelf, database: Database, clock: SetClock, settings: Settings
) -> None:
    write_events(database, 4)
    waiting = service.seal(database, clock, settings, SealedBecause.MANUAL)
    trained = write_events(database, 6)
    later = write_events(database, 2)
    made = shelf.publish_base()
    base = NewBase(made.id, made.digest, EARLIER)
    done = service.install_base(database, clock, base, through_seq=trained[-1], actor="cli")
    assert waiting is not None
    skipped, of_base = windows_of(database, settings)
    assert (skipped.window_id, skipped.state, skipped.attempts) == (waiting.window_id, WindowState.SKIPPED, 0)
    assert (of_base.state, of_base.events, of_base.base_id) == (WindowState.BASE, 6, made.id)
    assert service.read_page(database, settings).open.events == len(later)
    assert (done.revision, read_registry(database).pointer.base_id) == (1, made.id)


def test_a_base_comes_with_its_first_adapter_and_what_runs_first_is_part_of_it(
    shelf: Shelf, database: Database, clock: SetClock
) -> None:
    made = shelf.publish_base()
    adapter = shelf.candidate(made.id, 0.1)
    base = NewBase(made.id, made.digest)

    def fail(_: object) -> None:
        raise Conflict("the catalogue could not be encoded")

    with pytest.raises(Conflict):
        service.install_base(database, clock, base, through_seq=0, actor="cli", adapter=adapter, first=fail)
    assert read_registry(database).pointer.base_id is None
    for _ in range(2):  # a build that is repeated gives the same again
        done = service.install_base(database, clock, base, through_seq=0, actor="cli", adapter=adapter)
        assert done.to_version == adapter.adapter_version


@pytest.mark.timeout(60)
def test_a_sealer_waits_for_a_writer_with_a_lower_number(
    database: Database, clock: SetClock, settings: Settings
) -> None:
    if database.dialect == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    with database.write() as slow:
        low = insert_events(slow, 1)
        high = write_events(database, 1)
        assert low < high
        with pytest.raises(StoreUnavailable):
            service.seal(database, clock, settings, SealedBecause.MANUAL)
    window = service.seal(database, clock, settings, SealedBecause.MANUAL)
    assert window is not None
    assert (window.through_seq, window.events) == (high[-1], 2)
