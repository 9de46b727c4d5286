"""Partitions of events on PostgreSQL: made ahead by whoever comes, with a net below, and exact across their edges."""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from service.errors import StoreUnavailable
from service.events import partitions, repository
from service.events.partitions import WIDTH, Partition, ensure, width
from service.events.service import history, ingest
from service.kit.db import Database
from service.recommend.history import load_past
from service.users.service import erase_user
from tests.conftest import PostgresStore, SetClock
from tests.events.test_service import TOLERANCE, counts, event, send, stored_ids
from tests.windows.streams import write_events
from tests.worlds import eventually

MONTH = timedelta(days=30)


@pytest.fixture
def store(_postgres: PostgresStore) -> Iterator[Database]:
    """PostgreSQL alone: SQLite keeps one table."""
    database = Database(_postgres.url)
    yield database
    database.close()
    _postgres.reset()


pytestmark = pytest.mark.postgres


def jump(database: Database, seq: int) -> None:
    """The next event gets this number."""
    with database.write() as connection:
        connection.execute(sa.text("SELECT setval('events_seq_seq', :seq, false)"), {"seq": seq})


def parts(database: Database) -> list[Partition]:
    with database.read() as connection:
        return partitions.every(connection)


def rows_in(database: Database, table: str) -> int:
    with database.read() as connection:
        return connection.scalar(sa.text(f"SELECT count(*) FROM {table}")) or 0  # noqa: S608


def waiting(database: Database) -> int:
    """Connections that wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with database.read() as connection:
        return connection.scalar(sa.text(query)) or 0


def test_a_new_store_has_one_partition_and_one_ahead(store: Database) -> None:
    assert [(part.first, part.end) for part in parts(store)] == [(1, WIDTH + 1), (WIDTH + 1, 2 * WIDTH + 1)]
    assert ensure(store, MONTH) == []


def test_sqlite_has_none(tmp_path: object) -> None:
    database = Database(f"sqlite:///{tmp_path}/plain.db")
    assert ensure(database, MONTH) == []
    assert partitions.detach(database, 10) == 0
    database.close()


def test_the_next_partition_is_made_as_soon_as_the_last_is_entered(store: Database) -> None:
    jump(store, WIDTH)
    write_events(store, 1)
    assert ensure(store, MONTH) == []
    write_events(store, 1)
    [made] = ensure(store, MONTH)
    assert made.first == 2 * WIDTH + 1
    assert parts(store)[-1] == made
    assert ensure(store, MONTH) == []


def test_processes_that_come_at_once_make_it_once(store: Database) -> None:
    jump(store, WIDTH + 1)
    write_events(store, 1)
    with ThreadPoolExecutor(4) as pool:
        made = [part for found in pool.map(lambda _: ensure(store, MONTH), range(4)) for part in found]
    assert [part.first for part in made] == [2 * WIDTH + 1]


def test_an_event_without_a_partition_falls_into_the_net_which_becomes_one(store: Database) -> None:
    jump(store, 5 * WIDTH + 7)
    send(store, event("a"), event("b"))
    assert rows_in(store, "events_default") == 2

    made = ensure(store, MONTH)

    assert rows_in(store, "events_default") == 0
    assert made[0].first == 2 * WIDTH + 1
    assert made[0].end > 5 * WIDTH + 8
    assert len(made) == 2  # and one ahead
    assert rows_in(store, made[0].name) == 2
    assert counts(send(store, event("a"), event("b", item="other"), event("c"))) == (1, 1, 1)
    assert stored_ids(store) == ["a", "b", "c"]
    assert ensure(store, MONTH) == []


def test_writers_go_on_while_partitions_are_made_and_no_event_is_lost(store: Database) -> None:
    jump(store, 2 * WIDTH - 100)
    done = threading.Event()

    def write() -> list[str]:
        try:
            acknowledged = []
            for turn in range(40):
                sent = [event(f"{turn}-{n}") for n in range(10)]
                assert counts(send(store, *sent)) == (10, 0, 0)
                acknowledged += [one["event_id"] for one in sent]
            return acknowledged
        finally:
            done.set()

    def make() -> None:
        while not done.is_set():
            try:
                ensure(store, MONTH)
            except StoreUnavailable:  # writers were in the way
                continue

    with ThreadPoolExecutor(2) as pool:
        written, made = pool.submit(write), pool.submit(make)
        acknowledged = written.result()
        made.result()
    assert stored_ids(store) == acknowledged
    ensure(store, MONTH)
    assert rows_in(store, "events_default") == 0


@pytest.mark.parametrize("count", [1, repository.COPIED])
def test_events_on_their_way_into_the_net_are_stored_where_a_partition_is_made_meanwhile(
    store: Database, clock: SetClock, count: int
) -> None:
    jump(store, 2 * WIDTH + 1)
    sent = [event(f"e{n:04}") for n in range(count)]
    with ThreadPoolExecutor(1) as pool:
        with store.write() as connection:
            made = partitions._append(connection, MONTH)
            storing = pool.submit(ingest, store, sent, clock=clock, clock_tolerance=TOLERANCE, together=count)
            eventually(lambda: waiting(store) == 1, 30)
        assert counts(storing.result()) == (count, 0, 0)
    assert rows_in(store, made.name) == count
    assert rows_in(store, "events_default") == 0


def test_a_reader_in_the_way_delays_a_partition_and_breaks_nothing(store: Database) -> None:
    jump(store, WIDTH + 1)
    write_events(store, 1)
    with store.read() as reading:
        reading.execute(sa.text("SELECT count(*) FROM events"))
        with pytest.raises(StoreUnavailable):
            ensure(store, MONTH)
        write_events(store, 1)
    assert len(ensure(store, MONTH)) == 1


@pytest.mark.parametrize(
    ("before", "took", "expected"),
    [
        (WIDTH, None, 4 * WIDTH),
        (WIDTH, timedelta(days=1), 4 * WIDTH),
        (WIDTH, timedelta(days=15), 2 * WIDTH),
        (WIDTH, timedelta(days=300), WIDTH),
        (80 * WIDTH, timedelta(days=30), 80 * WIDTH),
        (80 * WIDTH, timedelta(days=24), 100 * WIDTH),
        (80 * WIDTH, timedelta(days=60), 40 * WIDTH),
        (WIDTH, timedelta(seconds=-5), 4 * WIDTH),
    ],
)
def test_a_partition_is_as_wide_as_its_time_wants_within_bounds(
    before: int, took: timedelta | None, expected: int
) -> None:
    assert width(before, took, MONTH) == expected


def test_the_next_width_follows_the_time_that_the_last_one_took(store: Database) -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    write_events(store, 1, noon)
    jump(store, WIDTH + 1)
    write_events(store, 1, noon + timedelta(days=10))
    [made] = ensure(store, MONTH)
    assert made.end - made.first == 3 * WIDTH


def test_ids_are_unique_and_histories_whole_across_partitions(store: Database, clock: SetClock) -> None:
    for number, first in enumerate((10, WIDTH + 10, 2 * WIDTH + 10)):
        jump(store, first)
        ensure(store, MONTH)
        send(store, *(event(f"{number}-{n}", minute=3 * n + number, item=f"i{number}{n}") for n in range(5)))
    again = [event(f"0-{n}", minute=3 * n, item=f"i0{n}") for n in range(5)]
    assert counts(send(store, *again, event("1-0", user="forger"))) == (0, 5, 1)

    pages, before = [], None
    while True:
        page = history(store, "u", limit=4, before_seq=before)
        pages += [found.event_id for found in page.events]
        before = page.next_before_seq
        if before is None:
            break
    assert pages == [f"{number}-{n}" for n in reversed(range(5)) for number in (2, 1, 0)]
    with store.read() as connection:
        past = load_past(connection, "u", history_items=4, seen_items=100, ignored_types=frozenset())
        assert [row.seq % WIDTH for row in repository.interactions_after(connection, 13, 4)] == [14, 10, 11, 12]
        assert repository.max_seq(connection) == 2 * WIDTH + 14
    assert past.latest == ("i23", "i04", "i14", "i24")
    assert len(past.seen) == 15

    assert erase_user(store, "u", clock=clock, actor="cli").events == 15
    assert counts(send(store, *again)) == (0, 0, 5)
    assert counts(send(store, *(one | {"user_id": "v"} for one in again))) == (5, 0, 0)  # their ids are free


@pytest.mark.timeout(120)
def test_writers_that_meet_across_an_edge_store_each_id_once(store: Database) -> None:
    """RELIABILITY 2, small: 300 events, each sent 1 to 4 times, rebatched, by six writers, over a partition's edge."""
    jump(store, WIDTH - 100)
    draw = random.Random(11)
    distinct = [event(f"e{n:03}", user=f"u{n % 7}", minute=n % 60) for n in range(300)]
    copies = [e for e in distinct for _ in range(draw.randint(1, 4))]
    forged = [e | {"item_id": "forged"} for e in distinct[:30]]
    send(store, *distinct[:30])
    sent = copies + forged
    draw.shuffle(sent)
    with ThreadPoolExecutor(6) as pool:
        reports = list(pool.map(lambda at: send(store, *sent[at : at + 40]), range(0, len(sent), 40)))
    assert sorted(stored_ids(store)) == [e["event_id"] for e in distinct]
    assert sum(report.accepted for report in reports) == 270
    assert sum(len(report.rejected) for report in reports) == 30
    assert rows_in(store, "events_p1") > 0
    assert rows_in(store, f"events_p{WIDTH + 1}") > 0
