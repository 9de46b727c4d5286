"""PostgreSQL's own word on every query of a hot path: none reads a big table from end to end, none a partition in vain.

Few ids are asked for at once here, since these tables are small: a pass over 5,000 rows is the quickest way to 300.
Histories over one partition, on both databases: test_reads.
"""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from service.adapters import repository as adapters
from service.catalog import repository as catalog
from service.events import partitions
from service.events import repository as events
from service.events.partitions import WIDTH
from service.kit import leases
from service.kit.db import Database
from service.kit.ids import least_uuid7
from service.quality import repository as quality
from service.recommend import repository as recommending
from service.recommend.history import load_past
from service.users import repository as users
from service.windows import repository as windows
from tests.conftest import PostgresStore
from trainer.bench_stores import fill, fill_items

pytestmark = pytest.mark.postgres

START = datetime(2026, 1, 1, tzinfo=UTC)
IGNORED = frozenset({"impression"})
BIG = ("events_p", "event_ids", "items", "recommendations")
PARTS = [f"events_p{first}" for first in (1, WIDTH + 1, 2 * WIDTH + 1)]
EACH = 6_000

Run = Callable[[Connection], object]


@pytest.fixture(scope="module")
def store(_postgres: PostgresStore) -> Iterator[Database]:
    """Three partitions of 6,000 events each, 5,000 items and as many recommendations, all analysed."""
    database = Database(_postgres.url)
    for number in range(3):
        with database.write() as connection:
            first = {"first": number * WIDTH + 1_000}
            connection.execute(sa.text("SELECT setval('events_seq_seq', :first, false)"), first)
        start = START + timedelta(days=30 * number)
        fill(database, EACH, users=60, items=500, start=start.timestamp(), days=40, prefix=f"{number}-")
        partitions.ensure(database, timedelta(days=30))
    fill_items(database, 5_000, "b-1")
    with database.write() as connection:
        connection.execute(sa.text(_RECOMMENDATIONS), {"start": START})
        connection.execute(leases.leases.insert().values(name="updater", owner="o", fence=1, expires_at=START))
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE items, recommendations, event_ids")
    yield database
    database.close()
    _postgres.reset()


_RECOMMENDATIONS = """
    INSERT INTO recommendations (recommendation_id, user_id, created_at, strategy, catalog_revision, history, items)
    SELECT left(digits, 8) || '-' || right(digits, 4) || '-7000-8000-' || lpad(n::text, 12, '0'),
        'u' || n % 60, at, 'popular', 0, '[]', '[]'
    FROM (
        SELECT n, at, lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') AS digits
        FROM generate_series(1, 5000) AS n,
            LATERAL (SELECT CAST(:start AS timestamptz) + n * interval '10 minutes') AS made(at)
    ) AS made
"""


def plans(database: Database, run: Run) -> list[str]:
    """The plan of every statement that `run` makes; it is rolled back."""
    seen: list[tuple[str, object]] = []

    def note(_c: object, _cursor: object, statement: str, parameters: object, _context: object, _many: bool) -> None:
        seen.append((statement, parameters))

    with database.engine.connect() as connection:
        sa.event.listen(database.engine, "before_cursor_execute", note)
        try:
            run(connection)
        finally:
            sa.event.remove(database.engine, "before_cursor_execute", note)
        found = []
        # As on a disk without a head: tables of this size would lie in memory, where a pass over one costs nothing.
        connection.exec_driver_sql("SET LOCAL random_page_cost = 1.1")
        for statement, parameters in seen:
            explained = connection.exec_driver_sql(f"EXPLAIN (COSTS OFF) {statement}", parameters)  # type: ignore[arg-type]
            found.append("; ".join(" ".join(str(row[0]).split()) for row in explained))
    return found


def whole_reads(plan: str) -> list[str]:
    """Big tables that a plan reads from end to end."""
    return [table for table in re.findall(r"Seq Scan on (\w+)", plan) if table.startswith(BIG)]


def partitions_read(plan: str) -> set[str]:
    return set(re.findall(r" on (events_p\d+)", plan))


SOON, LATER = 2 * WIDTH + 1_500, 2 * WIDTH + 2_500
QUERIES: dict[str, tuple[Run, set[str] | None]] = {
    "history and seen items": (
        lambda c: load_past(c, "u50", history_items=20, seen_items=5_000, ignored_types=IGNORED),
        None,
    ),
    "distinct seen items": (lambda c: events.seen_with_seq(c, "u50", 50, IGNORED), None),
    "a page": (lambda c: events.page(c, "u50", limit=20, before_seq=None), None),
    "pasts of a window": (lambda c: events.earlier_items(c, ["u50", "u8"], LATER, 200, IGNORED), None),
    "events of a window": (lambda c: events.window_interactions(c, SOON, LATER, IGNORED), {PARTS[2]}),
    "a window's end": (lambda c: windows.measure(c, SOON, LATER, None), {PARTS[2]}),
    "popularity, a page": (lambda c: events.interactions_after(c, SOON, 500, LATER), {PARTS[2]}),
    "popularity, what is new": (
        lambda c: events.interactions_after(c, SOON, 500),
        {PARTS[2], f"events_p{3 * WIDTH + 1}"},
    ),
    "the open window": (lambda c: windows.read_pending(c, 1_000), None),
    "the open window, not counted": (windows.bound_pending, None),
    "the newest event": (events.max_seq, None),
    "ids that are taken": (lambda c: events.hashes(c, {f"1-{n}" for n in range(20)}), None),
    "a batch of events": (lambda c: events.insert_new(c, [_row(n) for n in range(500)]), None),
    "erasing a user": (lambda c: events.delete_of_user(c, "u50", START), None),
    "taking back events of an erased user": (lambda c: events.delete(c, {"u50": {"1-50", "2-50"}}), None),
    "when the user was last here": (lambda c: events.last_occurred_at(c, "u50"), None),
    "erasing recommendations": (lambda c: recommending.delete_of_user(c, "u50", {"r"}), None),
    "exporting events": (lambda c: events.of_user(c, "u50", after=(START, 3), limit=500), None),
    "exporting recommendations": (lambda c: recommending.of_user(c, "u50", after=(START, "r"), limit=500), None),
    "exporting recommendations for nobody": (
        lambda c: recommending.named_by_user(c, "u50", after="", limit=500),
        None,
    ),
    "a user's page, what was taken": (
        lambda c: quality.taken_by_time(c, {"u50"}, {"i1"}, START, START + timedelta(days=2), IGNORED),
        None,
    ),
    "a user's page, lists": (lambda c: recommending.latest_of_user(c, "u50", 10), None),
    "users of late": (lambda c: events.latest_users(c, among=500, limit=10), None),
    "an item's page, events": (lambda c: events.latest_of_item(c, "i1", among=500, limit=10), None),
    "the catalogue's page, lists": (lambda c: recommending.latest_lists(c, 100), None),
    "who was erased": (lambda c: users.find(c, b"0" * 32), None),
    "removing old events": (lambda c: events.delete_through(c, 1_500, 20), None),
    "removing old recommendations": (lambda c: recommending.delete_before(c, START + timedelta(days=2), 20), None),
    "known items": (lambda c: catalog.known(c, {f"i{n}" for n in range(20)}), None),
    "items by their ids": (lambda c: catalog.by_ids(c, {f"i{n}" for n in range(20)}), None),
    "catalogue changes": (lambda c: catalog.changed_since(c, 1, 100), None),
    "items without codes": (lambda c: catalog.without_codes(c, "b-1", 20), None),
    "codes that are taken": (lambda c: catalog.taken_codes(c, "b-1", {(1, 2, 3), (4, 5, 6)}), None),
    "the lease": (lambda c: leases.acquire(c, "updater", "other", timedelta(seconds=30)), None),
    "the pointer": (adapters.read_pointer, None),
    "windows, a page": (lambda c: windows.page(c, limit=50, before=None), None),
    "windows that are done with": (lambda c: windows.finished_through(c, START, 3), None),
}


def _row(number: int) -> dict[str, object]:
    given = {
        "event_id": f"new-{number}",
        "body_hash": "0" * 64,
        "user_id": "u50",
        "item_id": "i1",
        "event_type": "view",
    }
    none = dict.fromkeys(("value", "recommendation_id", "position", "properties"))
    return {**given, "occurred_at": START, "received_at": START, **none}


@pytest.mark.parametrize("name", QUERIES)
def test_no_big_table_is_read_from_end_to_end(store: Database, name: str) -> None:
    run, only = QUERIES[name]
    found = plans(store, run)
    assert found
    for plan in found:
        assert whole_reads(plan) == [], plan
    if only is not None:
        assert set().union(*map(partitions_read, found)) <= only


def test_a_page_that_goes_on_finds_its_place_in_one_partition(store: Database) -> None:
    with store.read() as connection:
        newest = events.page(connection, "u50", limit=5, before_seq=None)
    place, page = plans(store, lambda c: events.page(c, "u50", limit=5, before_seq=newest[-1]["seq"]))
    assert len(partitions_read(place)) == 1
    assert whole_reads(place) == whole_reads(page) == []


def test_a_history_is_merged_from_the_partitions_without_a_sort(store: Database) -> None:
    [plan] = plans(store, lambda c: events.latest_interactions(c, "u0", 20, IGNORED))  # the most active user
    assert "Merge Append" in plan
    assert "-> Sort" not in plan
    assert plan.count("Index Only Scan") >= 3


def test_what_is_held_against_whole_reads_would_find_one(store: Database) -> None:
    [plan] = plans(store, lambda c: c.exec_driver_sql("SELECT count(*) FROM events WHERE value > 0").all())
    assert set(whole_reads(plan)) >= set(PARTS)


def test_recommendations_are_found_by_the_time_in_their_ids(store: Database) -> None:
    with store.read() as connection:
        before = START + timedelta(days=2)
        older = sa.text("SELECT count(*) FROM recommendations WHERE created_at < :before")
        by_id = sa.text("SELECT count(*) FROM recommendations WHERE recommendation_id < :bound")
        counted = connection.scalar(older, {"before": before})
        assert counted == connection.scalar(by_id, {"bound": least_uuid7(before)}) == 287
