"""Old events leave with their ids and recommendations, and never before their window is done with."""

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from service.catalog import repository as catalog
from service.catalog.tables import item_history
from service.events import partitions
from service.events.partitions import WIDTH
from service.events.tables import event_ids
from service.kit.db import Database
from service.kit.ids import least_uuid7
from service.recommend.tables import recommendations
from service.settings import Settings
from service.windows import repository, service
from service.windows.retention import Removed, remove_old
from service.windows.states import SealedBecause, WindowState
from service.windows.tables import windows
from tests.conftest import SetClock
from tests.events.test_service import event, stored_ids
from tests.worlds import send

DAY = timedelta(days=1)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, database_url=database_url, event_retention=10 * DAY, event_partition=30 * DAY)


def write(database: Database, clock: SetClock, *ids: str) -> None:
    send(database, clock, [event(one) for one in ids])


def seal(database: Database, clock: SetClock, settings: Settings, state: WindowState = WindowState.SKIPPED) -> None:
    window = service.seal(database, clock, settings, SealedBecause.MANUAL)
    assert window is not None
    with database.write() as connection:
        repository.update(connection, window.window_id, {"state": state.value})


def known_ids(database: Database) -> set[str]:
    with database.read() as connection:
        return set(connection.scalars(sa.select(event_ids.c.event_id)))


def jump(database: Database, seq: int) -> None:
    """On PostgreSQL the next event gets this number, and the partitions up to there are made."""
    if database.dialect == "postgresql":
        with database.write() as connection:
            connection.execute(sa.text("SELECT setval('events_seq_seq', :seq, false)"), {"seq": seq})
        partitions.ensure(database, 30 * DAY)


def recommend(database: Database, clock: SetClock, count: int) -> None:
    with database.write() as connection:
        connection.execute(
            recommendations.insert(),
            [
                {
                    "recommendation_id": least_uuid7(clock())[:-6] + f"{n:06x}",
                    "user_id": "u",
                    "created_at": clock(),
                    "strategy": "popular",
                    "catalog_revision": 0,
                    "history": [],
                    "items": [],
                }
                for n in range(count)
            ],
        )


def recommended(database: Database) -> int:
    with database.read() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(recommendations)) or 0


def test_nothing_is_removed_unless_it_is_asked_for(database: Database, clock: SetClock, settings: Settings) -> None:
    write(database, clock, "a")
    seal(database, clock, settings)
    clock.advance(days=4_000)
    forever = settings.model_copy(update={"event_retention": None})
    assert not remove_old(database, clock, forever)
    assert stored_ids(database) == ["a"]


def test_events_leave_with_their_ids_once_their_window_is_old_enough(
    database: Database, clock: SetClock, settings: Settings
) -> None:
    write(database, clock, "a", "b")
    seal(database, clock, settings)
    clock.advance(days=5)
    write(database, clock, "c")
    seal(database, clock, settings)
    write(database, clock, "open")
    sqlite = database.dialect == "sqlite"
    # On PostgreSQL they lie in a partition that is still being filled: those go after a partition's time more.
    wait = 10 if sqlite else 40
    clock.advance(days=wait - 5)
    assert not remove_old(database, clock, settings)

    clock.advance(minutes=1)
    assert remove_old(database, clock, settings) == Removed(0, 2, 0)
    assert stored_ids(database) == ["c", "open"]
    assert known_ids(database) == {"c", "open"}

    clock.advance(days=5)
    assert remove_old(database, clock, settings) == Removed(0, 1, 0)
    clock.advance(days=4_000)
    assert not remove_old(database, clock, settings)
    assert stored_ids(database) == ["open"]  # no window has it yet


def test_a_duplicate_that_comes_after_its_event_has_left_is_a_new_event(
    database: Database, clock: SetClock, settings: Settings
) -> None:
    write(database, clock, "a", "stays")
    seal(database, clock, settings)
    clock.advance(days=41)
    remove_old(database, clock, settings)
    write(database, clock, "a")  # fails unless it is accepted
    assert stored_ids(database) == ["a"]
    window = service.seal(database, clock, settings, SealedBecause.MANUAL)
    assert window is not None
    assert (window.after_seq, window.events) == (2, 1)


@pytest.mark.parametrize("state", [WindowState.SEALED, WindowState.TRAINING, WindowState.FAILED])
def test_what_is_not_done_with_stays_and_all_that_is_later(
    database: Database, clock: SetClock, settings: Settings, state: WindowState
) -> None:
    for name, own in (("a", WindowState.PROMOTED), ("b", state), ("c", WindowState.REFUSED)):
        write(database, clock, name)
        seal(database, clock, settings, own)
    clock.advance(days=1_000)
    assert remove_old(database, clock, settings).events == 1
    assert stored_ids(database) == ["b", "c"]


def test_a_window_that_was_given_up_is_done_with(database: Database, clock: SetClock, settings: Settings) -> None:
    write(database, clock, "a")
    seal(database, clock, settings, WindowState.FAILED)
    with database.write() as connection:
        repository.update(connection, 1, {"attempts": settings.window_attempts})
    clock.advance(days=1_000)
    assert remove_old(database, clock, settings).events == 1


def test_recommendations_leave_by_their_own_age_in_batches(
    database: Database, clock: SetClock, settings: Settings
) -> None:
    recommend(database, clock, 2_500)
    clock.advance(days=6)
    recommend(database, clock, 3)
    clock.advance(days=5)
    assert remove_old(database, clock, settings) == Removed(0, 0, 2_500)
    assert recommended(database) == 3


@pytest.mark.parametrize(
    ("of_events", "of_recommendations", "left"),
    [(None, 10, (2, 1)), (10, 2, (1, 0)), (4, 20, (0, 1)), (10, None, (1, 1)), (None, None, (2, 2))],
)
def test_recommendations_have_a_retention_of_their_own(
    database: Database,
    clock: SetClock,
    settings: Settings,
    of_events: int | None,
    of_recommendations: int | None,
    left: tuple[int, int],
) -> None:
    """An event and a recommendation of 45 days ago, and of 5 days ago."""
    days = {"event_retention": of_events, "recommendation_retention": of_recommendations}
    changes = {name: None if n is None else n * DAY for name, n in days.items()}
    own = settings.model_copy(update={**changes, "event_partition": timedelta(hours=1)})
    for wait in (40, 5):
        write(database, clock, f"e{wait}")
        seal(database, clock, settings)
        recommend(database, clock, 1)
        clock.advance(days=wait)
    remove_old(database, clock, own)
    assert (len(stored_ids(database)), recommended(database)) == left


def rename(database: Database, clock: SetClock, title: str) -> None:
    """And what the item was before was replaced just then."""
    row = {"item_id": "i", "title": title, "description": None, "categories": [], "brand": None, "available": True}
    with database.write() as connection:
        catalog.put_many(connection, [row], now=clock(), revision=catalog.next_revision(connection))
        connection.execute(
            item_history.update()
            .where(item_history.c.until_revision == catalog.current_revision(connection))
            .values(replaced_at=clock())
        )


def earlier_titles(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.scalars(sa.select(item_history.c.title).order_by(item_history.c.revision)))


def train(database: Database, clock: SetClock, settings: Settings, name: str) -> None:
    """A window with an event of this name, trained now."""
    write(database, clock, name)
    seal(database, clock, settings)
    with database.write() as connection:
        latest = sa.select(sa.func.max(windows.c.window_id)).scalar_subquery()
        connection.execute(windows.update().where(windows.c.window_id == latest).values(started_at=clock()))


def test_what_items_were_stays_while_events_stay_that_were_trained_on_it(
    database: Database, clock: SetClock, settings: Settings
) -> None:
    """Events stay for ever, or longer than the retention says: on PostgreSQL by the time of a partition."""
    slow = settings.model_copy(update={"event_retention": None, "recommendation_retention": 2 * DAY})
    for title in ("before any window", "in the window", "now"):
        rename(database, clock, title)
        clock.advance(days=1)
        if title == "before any window":
            train(database, clock, settings, "e")
            clock.advance(days=1)
    clock.advance(days=20)
    assert not remove_old(database, clock, slow)
    assert earlier_titles(database) == ["before any window", "in the window"]

    removed = remove_old(database, clock, settings)
    if database.dialect == "postgresql":
        assert (removed.events, earlier_titles(database)) == (0, ["before any window", "in the window"])
        clock.advance(days=30)
        removed = remove_old(database, clock, settings)
    assert (removed.events, removed.items, earlier_titles(database)) == (1, 2, [])


def test_what_items_were_before_all_that_stays_goes(database: Database, clock: SetClock, settings: Settings) -> None:
    rename(database, clock, "first")
    clock.advance(days=1)
    rename(database, clock, "second")
    clock.advance(days=1)
    train(database, clock, settings, "e")
    clock.advance(days=1)
    rename(database, clock, "third")
    clock.advance(days=9)
    assert remove_old(database, clock, settings.model_copy(update={"event_retention": 10 * DAY})).items == 1
    assert earlier_titles(database) == ["second"]


def test_more_events_than_a_batch_leave_altogether(database: Database, clock: SetClock, settings: Settings) -> None:
    write(database, clock, *(f"e{n}" for n in range(2_001)))
    seal(database, clock, settings)
    clock.advance(days=41)
    assert remove_old(database, clock, settings).events == 2_001
    assert known_ids(database) == set()


def test_a_partition_that_is_old_throughout_is_dropped_with_its_ids(
    database: Database, clock: SetClock, settings: Settings
) -> None:
    if database.dialect == "sqlite":
        pytest.skip("SQLite keeps one table")
    write(database, clock, "a", "b")
    seal(database, clock, settings)
    jump(database, WIDTH)
    write(database, clock, "last", "first of the next")
    seal(database, clock, settings)
    partitions.ensure(database, 30 * DAY)
    clock.advance(days=5)
    jump(database, WIDTH + 5)
    write(database, clock, "young")
    seal(database, clock, settings)
    clock.advance(days=5, minutes=1)

    assert remove_old(database, clock, settings) == Removed(1, 0, 0)

    assert stored_ids(database) == ["first of the next", "young"]
    assert known_ids(database) == {"first of the next", "young"}
    assert tables(database) == {"events_default", f"events_p{WIDTH + 1}", f"events_p{2 * WIDTH + 1}"}


def test_an_id_that_was_freed_and_came_again_is_not_freed_with_the_rest(
    database: Database, clock: SetClock, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database.dialect == "sqlite":
        pytest.skip("SQLite keeps one table")
    monkeypatch.setattr("service.windows.retention.BATCH", 1)
    write(database, clock, "a", "b")
    jump(database, WIDTH + 1)
    write(database, clock, "c")
    seal(database, clock, settings)
    partitions.ensure(database, 30 * DAY)

    class Killed(BaseException):
        pass

    def killed(connection: Connection, table: str, through_seq: int) -> list[str]:
        if through_seq > 1:
            raise Killed
        return delete_through(connection, table, through_seq)

    delete_through = partitions.delete_through
    clock.advance(days=41)
    with monkeypatch.context() as patched:
        patched.setattr(partitions, "delete_through", killed)
        with pytest.raises(Killed):
            remove_old(database, clock, settings)
    assert known_ids(database) == {"b", "c"}
    write(database, clock, "a")
    remove_old(database, clock, settings)
    assert "a" in known_ids(database)


def test_a_drop_that_was_interrupted_goes_on(database: Database, clock: SetClock, settings: Settings) -> None:
    if database.dialect == "sqlite":
        pytest.skip("SQLite keeps one table")
    write(database, clock, "a", "b")
    jump(database, WIDTH + 1)
    write(database, clock, "c")
    seal(database, clock, settings)
    partitions.ensure(database, 30 * DAY)
    assert partitions.detach(database, WIDTH) == 1  # and there the process was killed
    assert stored_ids(database) == ["c"]
    assert known_ids(database) == {"a", "b", "c"}

    assert remove_old(database, clock, settings) == Removed(1, 0, 0)

    assert known_ids(database) == {"c"}
    assert "events_expired_1" not in tables(database)


def tables(database: Database) -> set[str]:
    """Partitions and what is left of them."""
    with database.read() as connection:
        found: Iterable[str] = sa.inspect(connection).get_table_names()
    return {name for name in found if name.startswith("events_")}
