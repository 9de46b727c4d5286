"""Ingestion, history and erasure against both stores."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from service.audit import repository as audit
from service.catalog.schemas import Item
from service.catalog.service import delete_item, put_items
from service.errors import StoreUnavailable
from service.events import repository
from service.events.schemas import IngestReport
from service.events.service import history, ingest
from service.events.tables import events
from service.kit.db import Database
from service.recommend.tables import recommendations
from service.users.service import erase_user
from tests.conftest import SetClock

TOLERANCE = timedelta(minutes=5)


def event(event_id: str, *, user: str = "u", item: str = "i", minute: int = 0, **more: Any) -> dict[str, Any]:
    at = datetime(2026, 3, 1, 10, tzinfo=UTC) + timedelta(minutes=minute)
    return {
        "event_id": event_id,
        "user_id": user,
        "item_id": item,
        "event_type": "click",
        "occurred_at": at.isoformat(),
        **more,
    }


def send(database: Database, *sent: object, validate_only: bool = False) -> IngestReport:
    return ingest(database, sent, clock=SetClock(), clock_tolerance=TOLERANCE, validate_only=validate_only)


def stored_ids(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.scalars(sa.select(events.c.event_id).order_by(events.c.seq)))


def counts(report: IngestReport) -> tuple[int, int, int]:
    return report.accepted, report.duplicates, len(report.rejected)


def test_a_new_event_is_stored_as_it_was_sent(database: Database, clock: SetClock) -> None:
    sent = event("e", value=4.5, position=3, properties={"a": [1, "ä", None]})
    assert counts(send(database, sent)) == (1, 0, 0)
    [found] = history(database, "u", limit=10, before_seq=None).events
    assert (found.seq, found.event_id, found.item_id, found.value, found.position) == (1, "e", "i", 4.5, 3)
    assert found.properties == {"a": [1, "ä", None]}
    assert found.occurred_at == datetime(2026, 3, 1, 10, tzinfo=UTC)
    assert found.received_at == clock()


def test_every_field_comes_back_as_it_was_whoever_stood_beside_it_in_the_batch(database: Database) -> None:
    awkward: dict[str, Any] = {
        "quotes \"'\\ %s :a ${b}": "line\nbreak\ttab \u2028 \U0001f600 é",
        "largest": 2**63 - 1,
        "smallest": -(2**63),
        "small": 5e-324,
        "exact": 0.1,
        "nested": {"list": [1, "2", None, True, {"": []}]},
        "json": '{"not": "parsed"}',
    }
    sent = [
        event("bare"),
        event("full", user="ü'\"\\", item="%s", value=1e308, position=10_000, properties=awkward),
        event("zero", value=-0.0, position=0, properties={}),
        event("linked", recommendation_id="01890a5d-ac96-774b-bcce-b302099a8057"),
        event("moment", occurred_at="2026-03-01T10:00:00.123456+05:30"),
    ]
    assert counts(send(database, *sent)) == (5, 0, 0)
    assert counts(send(database, *sent)) == (0, 5, 0)
    with database.read() as connection:
        found = {row.event_id: row for row in connection.execute(sa.select(events))}
    assert (found["full"].user_id, found["full"].item_id) == ("ü'\"\\", "%s")
    assert (found["full"].value, found["full"].position, found["full"].properties) == (1e308, 10_000, awkward)
    assert (found["zero"].value, found["zero"].position, found["zero"].properties) == (0.0, 0, {})
    bare = found["bare"]
    assert [bare.value, bare.position, bare.properties, bare.recommendation_id] == [None] * 4
    assert found["linked"].recommendation_id == "01890a5d-ac96-774b-bcce-b302099a8057"
    assert found["moment"].occurred_at == datetime(2026, 3, 1, 4, 30, 0, 123456, tzinfo=UTC)
    with database.read() as connection:
        nothing = connection.scalars(sa.select(events.c.event_id).where(events.c.properties.is_(None)))
        assert set(nothing) == {"bare", "linked", "moment"}  # SQL's null, not JSON's


def test_the_same_event_again_is_a_duplicate(database: Database) -> None:
    send(database, event("e"))
    assert counts(send(database, event("e"), event("f"))) == (1, 1, 0)
    assert stored_ids(database) == ["e", "f"]


def test_the_same_event_twice_in_a_batch_counts_once(database: Database) -> None:
    assert counts(send(database, event("e"), event("e"), event("e"))) == (1, 2, 0)


def test_an_id_with_other_content_is_a_conflict_and_the_first_stays(database: Database) -> None:
    send(database, event("e", item="i"))
    report = send(database, event("e", item="other"), event("f"), event("e", item="i"))
    assert counts(report) == (1, 1, 1)
    assert (report.rejected[0].index, report.rejected[0].code) == (0, "event_id_conflict")
    assert history(database, "u", limit=10, before_seq=None).events[-1].item_id == "i"


def test_a_conflict_inside_a_batch_rejects_the_later_one(database: Database) -> None:
    report = send(database, event("e", item="i"), event("e", item="other"))
    assert counts(report) == (1, 0, 1)
    assert report.rejected[0].index == 1


def test_wrong_events_do_not_stop_the_others(database: Database) -> None:
    report = send(database, event("a"), {"event_id": "b"}, event("c"), None, event("d", minute=999))
    assert counts(report) == (2, 0, 3)
    assert [(r.index, r.event_id, r.code) for r in report.rejected] == [
        (1, "b", "invalid_event"),
        (3, None, "invalid_event"),
        (4, "d", "future_event"),
    ]
    assert stored_ids(database) == ["a", "c"]


def test_an_empty_list_is_an_empty_report(database: Database) -> None:
    assert counts(send(database)) == (0, 0, 0)


def test_events_of_items_that_are_not_in_the_catalogue_are_stored_and_counted(
    database: Database, clock: SetClock
) -> None:
    put_items(database, clock, [Item(item_id="known", title="t"), Item(item_id="hidden", title="t")])
    delete_item(database, clock, "hidden")
    report = send(database, event("a", item="known"), event("b", item="new"), event("c", item="hidden"))
    assert (report.accepted, report.unknown_items) == (3, 1)


def test_a_rehearsal_says_the_same_and_stores_nothing(database: Database) -> None:
    send(database, event("old"), event("clash"))
    batch: tuple[object, ...] = (event("old"), event("clash", item="other"), event("new"), event("new"), {})
    rehearsed = send(database, *batch, validate_only=True)
    assert stored_ids(database) == ["old", "clash"]
    assert rehearsed == send(database, *batch)


def test_a_batch_takes_its_sequence_in_the_order_of_time_and_ties_as_they_were_sent(database: Database) -> None:
    send(database, event("late", minute=2), event("early", minute=1), event("b", minute=1))
    assert stored_ids(database) == ["early", "b", "late"]


def test_more_than_a_slice_is_stored_and_indexed_from_the_start_of_all(database: Database) -> None:
    many: list[object] = [event(f"e{i:05}") for i in range(2_500)]
    many[2_200] = "no event"
    report = send(database, *many)
    assert counts(report) == (2_499, 0, 1)
    assert report.rejected[0].index == 2_200


def test_a_copied_batch_is_what_a_small_one_would_have_been(database: Database) -> None:
    """Enough events in one transaction for COPY: the same outcomes, values and order."""
    awkward = event(
        "awkward",
        user="tab\u2028'\"\\N",
        item="\\.",
        value=1e308,
        position=10_000,
        properties={"text": 'line\nbreak\ttab \\ "quoted" \U0001f600', "largest": 2**63 - 1, "null": None},
        recommendation_id="01890a5d-ac96-774b-bcce-b302099a8057",
    )
    send(database, event("old"), event("clash"))
    many = [event(f"e{n:04}", minute=n % 60) for n in range(2_100)]
    sent: list[object] = [*many, awkward, event("old"), event("clash", item="other"), many[7], "no event"]
    report = ingest(database, sent, clock=SetClock(), clock_tolerance=TOLERANCE, together=5_000)
    assert counts(report) == (2_101, 2, 2)
    assert [(r.index, r.code) for r in report.rejected] == [(2_102, "event_id_conflict"), (2_104, "invalid_event")]
    in_order = sorted(range(2_100), key=lambda n: (n % 60, n))
    expected = [f"e{n:04}" for n in in_order]
    expected.insert(sum(n % 60 == 0 for n in range(2_100)), "awkward")
    assert stored_ids(database) == ["old", "clash", *expected]
    [found] = history(database, "tab\u2028'\"\\N", limit=5, before_seq=None).events
    assert (found.item_id, found.value, found.position) == ("\\.", 1e308, 10_000)
    assert found.properties == awkward["properties"]
    assert found.recommendation_id == awkward["recommendation_id"]
    again = ingest(database, sent, clock=SetClock(), clock_tolerance=TOLERANCE, together=5_000)
    assert counts(again) == (0, 2_103, 2)


def test_copied_batches_that_overlap_and_run_together_store_each_event_once(database: Database) -> None:
    """As two imports of the same file do: more than COPY's threshold each, one in the reverse order, one forged."""
    mine = [event(f"e{n:04}", user=f"u{n % 7}", minute=n % 60) for n in range(2_400)]
    forged = [one | {"item_id": "forged"} for one in mine[:200]] + mine[200:]

    def store(sent: list[dict[str, Any]]) -> IngestReport:
        return ingest(database, sent, clock=SetClock(), clock_tolerance=TOLERANCE, together=5_000)

    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(store, [mine, mine[::-1], forged]))

    assert sorted(stored_ids(database)) == [one["event_id"] for one in mine]
    assert sum(report.accepted for report in reports) == 2_400
    conflicts = [len(report.rejected) for report in reports]
    assert conflicts in ([0, 0, 200], [200, 200, 0])  # whoever came first
    assert sum(report.duplicates for report in reports) == 3 * 2_400 - 2_400 - sum(conflicts)


@pytest.mark.parametrize("database_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True)
def test_an_event_whose_id_is_freed_by_an_erasure_in_the_same_moment_is_stored(
    database: Database, clock: SetClock
) -> None:
    """Between the insertion that finds the id taken and the look at whose it is: neither duplicate nor conflict."""
    send(database, event("e", user="gone"))
    erased = threading.Event()

    @sa.event.listens_for(database.engine, "after_cursor_execute")
    def _between(*given: Any) -> None:
        if "INSERT INTO event_ids" in given[2] and not erased.is_set():
            erased.set()
            with database.write() as connection:  # as the second of an erasure's two transactions does
                repository.delete(connection, {"gone": {"e"}})

    assert counts(send(database, event("e", user="other"))) == (1, 0, 0)
    assert erased.is_set()
    [found] = history(database, "other", limit=2, before_seq=None).events
    assert found.event_id == "e"


def test_history_is_newest_first_and_pages_without_gaps_over_equal_times(database: Database) -> None:
    send(database, *(event(f"e{i}", minute=i // 3) for i in range(8)), event("else", user="v"))
    pages, before = [], None
    while True:
        page = history(database, "u", limit=3, before_seq=before)
        pages.append([found.event_id for found in page.events])
        before = page.next_before_seq
        if before is None:
            break
    assert pages == [["e7", "e6", "e5"], ["e4", "e3", "e2"], ["e1", "e0"]]


def test_an_unknown_user_has_an_empty_history(database: Database) -> None:
    page = history(database, "nobody", limit=5, before_seq=3)
    assert (page.events, page.next_before_seq) == ([], None)


def latest(*asked: Any) -> list[str]:
    return [item_id for item_id, _ in repository.latest_interactions(*asked)]


def seen(*asked: Any) -> list[str]:
    return [item_id for item_id, _ in repository.seen_with_seq(*asked)]


def test_latest_and_seen_items_follow_event_time_and_leave_ignored_types_out(database: Database) -> None:
    send(
        database,
        event("1", item="a", minute=1),
        event("2", item="b", minute=5),
        event("3", item="a", minute=3),
        event("4", item="c", minute=4),
        event("5", item="shown", minute=6, event_type="impression"),
    )
    with database.read() as connection:
        assert latest(connection, "u", 3, {"impression"}) == ["b", "c", "a"]
        assert latest(connection, "u", 9, {"impression"}) == ["b", "c", "a", "a"]
        assert latest(connection, "u", 1) == ["shown"]
        assert seen(connection, "u", 9, {"impression"}) == ["b", "c", "a"]
        assert seen(connection, "u", 2, {"impression"}) == ["b", "c"]
        assert seen(connection, "nobody", 9) == []


def test_the_highest_sequence_number_starts_at_zero(database: Database) -> None:
    with database.read() as connection:
        assert repository.max_seq(connection) == 0
    send(database, event("a"), event("b"))
    with database.read() as connection:
        assert repository.max_seq(connection) == 2
        rows = repository.interactions_after(connection, 1, 10)
    assert [(row.seq, row.item_id, row.event_type) for row in rows] == [(2, "i", "click")]


def test_erasing_a_user_leaves_the_others_and_an_audit_entry_without_the_id(
    database: Database, clock: SetClock
) -> None:
    send(database, event("a", user="gone"), event("b", user="gone"), event("c", user="stays"))
    with database.write() as connection:
        for number, user in enumerate(("gone", "stays")):
            connection.execute(
                recommendations.insert().values(
                    recommendation_id=str(number),
                    user_id=user,
                    created_at=clock(),
                    strategy="popular",
                    catalog_revision=0,
                    history=[],
                    items=[],
                )
            )
    erased = erase_user(database, "gone", clock=clock, actor="key:abc")
    assert (erased.events, erased.recommendations) == (2, 1)
    assert stored_ids(database) == ["c"]
    with database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(recommendations)) == 1
        [entry] = audit.page(connection, limit=5, before=None)
    assert (entry["actor"], entry["action"], entry["details"]) == (
        "key:abc",
        "user.erase",
        {"events": 2, "recommendations": 1},
    )
    assert entry["subject"].startswith("hmac-sha256:")
    assert "gone" not in str(entry)


def test_erasing_an_unknown_user_erases_nothing(database: Database, clock: SetClock) -> None:
    assert erase_user(database, "nobody", clock=clock, actor="cli").events == 0


def test_a_sequence_number_is_not_given_again_after_an_erasure(database: Database, clock: SetClock) -> None:
    send(database, event("a"))
    erase_user(database, "u", clock=clock, actor="cli")
    send(database, event("b", user="v"))
    with database.read() as connection:
        assert repository.max_seq(connection) == 2


def test_nothing_is_stored_when_the_transaction_fails(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE items RENAME TO items_elsewhere")
    with pytest.raises((sa.exc.DBAPIError, StoreUnavailable)):
        send(database, event("a"))
    assert stored_ids(database) == []
