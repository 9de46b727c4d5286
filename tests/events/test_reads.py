"""Reading out of a store of many events: what comes back, and that an index answers."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.engine import Connection

from service.events import repository
from service.events.service import history
from service.kit.db import Database
from service.recommend.history import load_past
from service.windows import repository as windows
from tests import worlds
from tests.conftest import SetClock
from trainer.bench_history import plans
from trainer.bench_stores import fill

HISTORY_INDEX = "user_id_occurred_at_seq_item_id_event_type"  # a partition names its own after itself
IGNORED = frozenset({"impression"})
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def many(database: Database) -> Database:
    """30,000 events of 300 users: enough for PostgreSQL to prefer an index where there is one."""
    fill(database, 30_000, users=300, items=500, start=START.timestamp(), days=30, prefix="e")
    return database


def plan(database: Database, read: Callable[[Connection], object]) -> list[str]:
    def run() -> None:
        with database.read() as connection:
            read(connection)

    return plans(database, run)


def assert_only(found: list[str], index: str, *, sorts: bool = False) -> None:
    assert found
    for one in found:
        assert index in one
        assert "SCAN events" not in one
        assert "Seq Scan" not in one
        sorted_by = one.replace("Sort Key", "")  # of a merge: the partitions' own order
        assert sorts or ("Sort" not in sorted_by and "B-TREE" not in one)


def test_the_fill_spreads_its_events_over_users_items_and_time(many: Database) -> None:
    with many.read() as connection:
        rows = repository.interactions_after(connection, 0, 30_000)
    users = {row.user_id for row in rows}
    assert len(rows) == 30_000
    assert {row.seq for row in rows} == set(range(1, 30_001))
    assert users <= {f"u{k}" for k in range(300)}
    assert len(users) > 290
    assert [row.occurred_at for row in rows] == sorted(row.occurred_at for row in rows)
    assert START < rows[0].occurred_at < rows[-1].occurred_at <= START + timedelta(days=30)
    assert len(history(many, "u0", limit=500, before_seq=None).events) == 500  # far more than a fair share


def test_a_users_past_is_read_from_the_index_in_its_order(many: Database) -> None:
    def past(connection: Connection) -> object:
        return load_past(connection, "u7", history_items=20, seen_items=5_000, ignored_types=IGNORED)

    assert_only(plan(many, past), HISTORY_INDEX)


def test_a_page_of_a_users_events_is_read_by_the_index_in_its_order(many: Database) -> None:
    first = history(many, "u7", limit=10, before_seq=None)
    found = plans(many, lambda: history(many, "u7", limit=10, before_seq=None))
    assert_only(found, HISTORY_INDEX)

    following = plans(many, lambda: history(many, "u7", limit=10, before_seq=first.next_before_seq))
    assert HISTORY_INDEX in following[-1]
    assert "Seq Scan" not in following[-1]


def test_the_past_of_a_windows_users_is_read_newest_first_from_the_index(many: Database) -> None:
    users = [f"u{k}" for k in range(0, 300, 10)]
    found = plan(many, lambda c: repository.earlier_items(c, users, 25_000, 20, IGNORED))
    assert_only(found, HISTORY_INDEX)


def test_a_windows_events_are_found_by_their_sequence(many: Database) -> None:
    key = "PRIMARY KEY" if many.dialect == "sqlite" else "_pkey"
    assert_only(plan(many, lambda c: repository.window_interactions(c, 28_000, 29_000, IGNORED)), key, sorts=True)
    assert_only(plan(many, lambda c: repository.interactions_after(c, 28_000, 100, 28_500)), key)
    assert_only(plan(many, lambda c: windows.measure(c, 28_000, 29_000, None)), key)


def test_the_newest_sequence_number_is_read_without_counting(many: Database) -> None:
    found = plan(many, repository.max_seq)
    assert "Seq Scan" not in found[0]
    assert many.dialect == "sqlite" or "_pkey" in found[0]
    with many.read() as connection:
        assert repository.max_seq(connection) == 30_000


@pytest.mark.parametrize("limit", [1, 3, 6, 100])
def test_the_past_of_users_is_their_last_interactions_up_to_an_event(
    database: Database, clock: SetClock, limit: int
) -> None:
    draw = random.Random(limit)
    sent = [
        worlds.event(
            f"e{n}",
            f"u{draw.randrange(6)}",
            f"i{draw.randrange(9)}",
            START + timedelta(minutes=draw.randrange(40)),
            draw.choice(["view", "buy", "impression"]),
        )
        for n in range(90)
    ]
    for event in sent:
        worlds.send(database, clock, [event])
    users = ["u4", "u0", "u1", "nobody"]

    with database.read() as connection:
        found = repository.earlier_items(connection, users, 70, limit, IGNORED)
        unfiltered = repository.earlier_items(connection, users, 70, limit)

    wanted = {}
    for user in users[:3]:
        own = [
            (event["occurred_at"], seq, event["item_id"])
            for seq, event in enumerate(sent[:70], 1)
            if event["user_id"] == user and event["event_type"] != "impression"
        ]
        wanted[user] = [item for _, _, item in sorted(own)[-limit:]]
    assert found == wanted
    assert all(len(unfiltered[user]) >= len(found[user]) for user in found)


@pytest.mark.parametrize(("history_items", "seen_items"), [(3, 50), (3, 4), (20, 4), (4, 4), (1, 1), (200, 100)])
def test_what_was_seen_are_the_last_distinct_items_however_often_they_came(
    database: Database, clock: SetClock, history_items: int, seen_items: int
) -> None:
    items = [1, 2, 3, 1, 1, 1, 4, 4, 4, 4, 5, 2, 2, 6, 6, 6, 6, 6]
    for n, item in enumerate(items):
        worlds.send(database, clock, [worlds.event(f"e{n}", "u", f"i{item}", START + timedelta(minutes=n))])

    with database.read() as connection:
        past = load_past(connection, "u", history_items=history_items, seen_items=seen_items, ignored_types=frozenset())
        assert load_past(connection, "v", history_items=3, seen_items=3, ignored_types=frozenset()).latest == ()

    newest = [f"i{item}" for item in reversed(items)]
    assert past.latest == tuple(reversed(newest[:history_items]))
    assert sorted(past.seen) == sorted(list(dict.fromkeys(newest))[:seen_items])
