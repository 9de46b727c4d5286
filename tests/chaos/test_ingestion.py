"""Scenarios 1, 2, 3 and 18: what was acknowledged is there, once, whatever happens to the service or to a commit."""

import multiprocessing
import random
import resource
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from service.errors import StoreUnavailable
from service.events.tables import events
from service.kit.clock import utc_now
from service.kit.db import Database
from service.kit.leases import leases
from tests import worlds
from tests.chaos.ingestion import Served, Writer
from tests.chaos.scenarios import sized
from tests.cluster.nursery import Nursery

WRITERS = 8
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def served(nursery: Nursery, tmp_path: Path, database: Database) -> Iterator[Served]:
    served = Served(nursery, tmp_path, database)
    served.start()
    yield served
    served.kill()


@pytest.mark.scenario(1)
def test_a_killed_service_has_lost_and_doubled_nothing_that_it_acknowledged(
    served: Served, figures: dict[str, Any]
) -> None:
    kills, chance = sized(3, 200), random.Random(1)
    with ExitStack() as ending:
        writers = []
        for number in range(WRITERS):
            writers.append(Writer(served, number))
            ending.callback(writers[-1].end)
        for _ in range(kills):
            heard = sum(len(writer.acknowledged) for writer in writers)
            worlds.eventually(lambda: sum(len(w.acknowledged) for w in writers) > heard, 60)  # noqa: B023  # at once
            time.sleep(chance.uniform(0, 0.3))  # the kill finds each request somewhere else
            served.kill()
            served.start()

    acknowledged = Counter(event_id for writer in writers for event_id in writer.acknowledged)
    stored = served.stored()
    figures |= {
        "kills": kills,
        "acknowledged": len(acknowledged),
        "requests_cut_off": sum(writer.failures for writer in writers),
        "stored_though_cut_off": sum(writer.duplicates for writer in writers),
        "lost": len(acknowledged.keys() - stored.keys()),
        "doubled": sum(stored.values()) - len(stored),
    }
    assert stored == acknowledged  # each was acknowledged once, since what was is not sent again
    assert sum(writer.accepted for writer in writers) + figures["stored_though_cut_off"] == len(acknowledged)
    assert figures["requests_cut_off"] > 0


@pytest.mark.scenario(2)
def test_events_sent_again_and_rebatched_are_stored_once_and_every_conflict_is_caught(
    served: Served, database: Database, figures: dict[str, Any]
) -> None:
    distinct, contested, chance = sized(1_500, 10_000), sized(150, 1_000), random.Random(2)
    sent: list[dict[str, Any]] = []
    for number in range(distinct):
        event = worlds.event(f"e{number}", f"u{number % 97}", worlds.item_id(number), worlds.START)
        sent += [event] * chance.randint(1, 5)
        if number < contested:
            sent += [event | {"item_id": "forged"}] * chance.randint(1, 3)
    chance.shuffle(sent)  # so that either body may come first, and copies meet in one batch and across batches
    batches, start = [], 0
    while start < len(sent):
        size = chance.randint(1, 100)
        batches.append(sent[start : start + size])
        start += size

    with served.client() as client, ThreadPoolExecutor(WRITERS) as pool:
        reports = list(pool.map(lambda batch: _posted(client, batch), batches))

    with database.read() as connection:
        rows = connection.execute(sa.select(events.c.event_id, events.c.item_id)).all()
    won = {row.event_id: row.item_id for row in rows}
    losers = Counter(event["event_id"] for event in sent if event["item_id"] != won[event["event_id"]])
    caught: Counter[str] = Counter()
    for batch, report in zip(batches, reports, strict=True):
        for rejection in report["rejected"]:
            assert rejection["code"] == "event_id_conflict"
            assert batch[rejection["index"]]["event_id"] == rejection["event_id"]
            assert batch[rejection["index"]]["item_id"] != won[rejection["event_id"]]
            caught[rejection["event_id"]] += 1
    figures |= {
        "sent": len(sent),
        "distinct": distinct,
        "rows": len(rows),
        "conflicts": losers.total(),
        "caught": caught.total(),
    }
    assert served.stored() == Counter({f"e{number}": 1 for number in range(distinct)})
    assert caught == losers
    assert sum(report["accepted"] for report in reports) == distinct
    assert sum(report["duplicates"] for report in reports) == len(sent) - distinct - losers.total()


def _posted(client: httpx.Client, batch: list[dict[str, Any]]) -> dict[str, Any]:
    while (reply := client.post("/v1/events", json={"events": batch})).status_code in (429, 503):
        time.sleep(0.1)  # too many at once; what was stored of it is a duplicate by then
    assert reply.status_code == 202, reply.text
    report: dict[str, Any] = reply.json()
    return report


@pytest.mark.scenario(3)
@pytest.mark.parametrize("way", ["refused", "cut off"])
@pytest.mark.parametrize("database_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True)
def test_a_commit_that_fails_on_postgresql_is_never_answered_with_success(
    served: Served, database: Database, way: str, figures: dict[str, Any]
) -> None:
    """By a constraint that is checked at COMMIT, or by the end of the server's process in the middle of it."""
    action = "RAISE EXCEPTION 'doomed'" if way == "refused" else "PERFORM pg_terminate_backend(pg_backend_pid())"
    with _doomed_on_postgresql(database, action):
        _assert_never_success(served, sized(10, 50), figures)
    with served.client() as client:  # the fault has gone, and so has every trace of what it undid
        assert _posted(client, [_event("doomed-0")])["accepted"] == 1


@pytest.mark.scenario(3)
@on_sqlite
def test_a_commit_that_fails_on_sqlite_is_never_answered_with_success(
    nursery: Nursery, tmp_path: Path, database: Database, figures: dict[str, Any]
) -> None:
    """The system lets the service write no further into any file while it commits, as a full disk would."""
    served = Served(nursery, tmp_path, database, log=Path("/dev/null"))  # its log could not grow either
    served.start()
    try:
        _assert_never_success(served, sized(20, 100), figures, full_disk=True)
        with served.client() as client:
            assert _posted(client, [_event("doomed-0")])["accepted"] == 1
    finally:
        served.kill()


def _assert_never_success(served: Served, times: int, figures: dict[str, Any], *, full_disk: bool = False) -> None:
    good, answers = [], Counter[int]()
    with served.client() as client:
        for number in range(times):
            assert _posted(client, [_event(f"good-{number}")])["accepted"] == 1
            good.append(f"good-{number}")
            # A good event beside it shares the transaction, so its fate.
            doomed = {"events": [_event(f"doomed-{number}"), _event(f"beside-{number}")]}
            with _no_room(served.pid) if full_disk else _nothing():
                reply = client.post("/v1/events", json=doomed)
            answers[reply.status_code] += 1
            assert reply.status_code >= 500, reply.text
            assert reply.status_code != 503 or reply.headers["Retry-After"]
    figures |= {"commits_failed": times, "2xx": sum(n for status, n in answers.items() if status < 300)}
    figures |= {"answers": dict(answers)}
    assert served.stored() == Counter(good)


def _event(event_id: str) -> dict[str, Any]:
    return worlds.event(event_id, "u", "i", worlds.START)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _no_room(pid: int | None) -> Iterator[None]:
    assert pid is not None
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (100, hard))  # into the log's first page and no further
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def _doomed_on_postgresql(database: Database, action: str) -> Iterator[None]:
    """While the block runs, a transaction that stores an event named doomed-* fails when it commits."""
    with database.write() as connection:
        connection.exec_driver_sql(
            f"CREATE FUNCTION doom() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {action}; RETURN NULL; END $$"
        )
        connection.exec_driver_sql(
            "CREATE CONSTRAINT TRIGGER doom AFTER INSERT ON event_ids DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW WHEN (NEW.event_id LIKE 'doomed-%%') EXECUTE FUNCTION doom()"
        )
    try:
        yield
    finally:
        with database.write() as connection:
            connection.exec_driver_sql("DROP TRIGGER doom ON event_ids")
            connection.exec_driver_sql("DROP FUNCTION doom()")


@pytest.mark.scenario(18)
@on_sqlite
def test_four_processes_on_one_sqlite_file_never_find_it_locked(
    database_url: str, database: Database, figures: dict[str, Any]
) -> None:
    processes, each = 4, sized(60, 1_000)
    with database.write() as connection:
        connection.execute(leases.insert().values(name="counter", owner="o", fence=0, expires_at=utc_now()))
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        failed = sum(pool.map(_count_up, [database_url] * processes, [each] * processes))
    with database.read() as connection:
        counted = connection.scalar(sa.select(leases.c.fence).where(leases.c.name == "counter"))
    figures |= {"processes": processes, "transactions": processes * each, "locked": failed, "counted": counted}
    assert failed == 0
    assert counted == processes * each  # each read what the one before had written


def _count_up(url: str, times: int) -> int:
    """Read, then write, in one transaction, so often; how many failed."""
    database, failed = Database(url), 0
    for _ in range(times):
        try:
            with database.write() as connection:
                fence = connection.scalar(sa.select(leases.c.fence).where(leases.c.name == "counter")) or 0
                connection.execute(leases.update().where(leases.c.name == "counter").values(fence=fence + 1))
            with database.read() as connection:
                connection.execute(sa.select(leases)).all()
        except StoreUnavailable:
            failed += 1
    database.close()
    return failed
