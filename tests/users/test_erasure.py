"""An erased user is gone from everywhere, and nothing that is sent or recorded afterwards brings the user back."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from service.audit import repository as audit
from service.errors import Overtaken
from service.events import partitions
from service.events.service import ingest
from service.events.tables import events
from service.kit.db import Database
from service.kit.ids import uuid7
from service.recommend.history import load_past
from service.recommend.record import recommendation_writer
from service.recommend.tables import recommendations
from service.tables import metadata
from service.users import repository
from service.users import service as users_service
from service.users.service import Learners, count_erasures, erase_user, require_none_erased
from tests.conftest import SetClock
from tests.events.test_service import TOLERANCE, counts, event, send, stored_ids

GONE = "user-that-is-gone@example.org"


def erase(database: Database, clock: SetClock, user: str = GONE) -> tuple[int, int]:
    done = erase_user(database, user, clock=clock, actor="key:abc")
    return done.events, done.recommendations


def recommendation(user: str | None, at: datetime, **more: Any) -> dict[str, Any]:
    return {
        "recommendation_id": uuid7(),
        "user_id": user,
        "created_at": at,
        "strategy": "popular",
        "fallback_reason": None,
        "base_id": None,
        "adapter_version": None,
        "catalog_revision": 0,
        "history": ["i"],
        "items": [["j", 0.5]],
        **more,
    }


def record(database: Database, *rows: Mapping[str, Any]) -> None:
    writer = recommendation_writer(database)
    writer.start()
    try:
        for future in [writer.ask(row) for row in rows]:
            future.result(30)
    finally:
        writer.stop()


def recorded(database: Database) -> list[str | None]:
    with database.read() as connection:
        return list(connection.scalars(sa.select(recommendations.c.user_id).order_by(recommendations.c.created_at)))


def rows_that_say(database: Database, text: str) -> list[str]:
    """Tables that hold `text` anywhere, in any column: those of this version and any other that is there."""
    found = []
    with database.read() as connection:
        names = sa.inspect(connection).get_table_names()
        for name in sorted(set(names) | set(metadata.tables)):
            for row in connection.execute(sa.text(f'SELECT * FROM "{name}"')):  # noqa: S608  # names of our tables
                if text in repr(tuple(row)):
                    found.append(name)
    return found


# What goes


def test_no_table_says_the_users_name_afterwards(database: Database, clock: SetClock) -> None:
    named = recommendation(None, clock())
    send(database, event("1", user=GONE), event("2", user=GONE, recommendation_id=named["recommendation_id"]))
    send(database, event("3", user="stays", properties={"referred_by": "nobody"}))
    record(database, named, recommendation(GONE, clock()), recommendation("stays", clock()))
    assert {"events", "recommendations"} <= set(rows_that_say(database, GONE))

    assert erase(database, clock) == (2, 2)

    assert rows_that_say(database, GONE) == []
    assert rows_that_say(database, named["recommendation_id"]) == []
    assert stored_ids(database) == ["3"]
    assert recorded(database) == ["stays"]
    with database.read() as connection:
        past = load_past(connection, GONE, history_items=9, seen_items=9, ignored_types=())
        [entry] = audit.page(connection, limit=5, before=None)
    assert past.seen == ()
    assert entry["subject"].startswith("hmac-sha256:")
    assert entry["details"] == {"events": 2, "recommendations": 2}


def test_a_table_with_a_column_for_users_is_known_to_erasure_and_export() -> None:
    """Whoever adds one adds it to service.users.service._delete and service.users.export, and then here."""
    named = {table.name for table in metadata.sorted_tables for column in table.columns if "user" in column.name}
    named -= {"evaluations", "quality_buckets"}  # how many there were
    assert named == {"erased_users", "events", "recommendations"}


def test_a_recommendation_for_nobody_that_others_name_stays(database: Database, clock: SetClock) -> None:
    row = recommendation(None, clock())
    record(database, row)
    send(database, event("1", user="stays", recommendation_id=row["recommendation_id"]), event("2", user=GONE))
    assert erase(database, clock) == (1, 0)
    assert recorded(database) == [None]


def test_what_retention_has_taken_out_and_not_dropped_yet_goes_too(database: Database, clock: SetClock) -> None:
    if database.dialect == "sqlite":
        pytest.skip("SQLite keeps one table")
    send(database, event("old", user=GONE), event("old of another", user="stays"))
    with database.write() as connection:
        connection.execute(sa.text(f"SELECT setval('events_seq_seq', {partitions.WIDTH + 1}, false)"))
    partitions.ensure(database, timedelta(days=30))
    send(database, event("new", user=GONE))
    assert partitions.detach(database, partitions.WIDTH) == 1

    assert erase(database, clock) == (2, 0)

    assert rows_that_say(database, GONE) == []
    assert rows_that_say(database, "old of another") == ["event_ids", "events_expired_1"]


# What comes back


def test_what_a_client_sends_again_is_refused_by_name(database: Database, clock: SetClock) -> None:
    send(database, event("1", user=GONE), event("2", user=GONE, minute=1))
    erase(database, clock)

    report = send(database, event("2", user=GONE, minute=1), event("3", user=GONE), event("4", user="stays"))

    assert counts(report) == (1, 0, 2)
    assert [(r.index, r.event_id, r.code) for r in report.rejected] == [
        (0, "2", "erased_user"),
        (1, "3", "erased_user"),
    ]
    assert stored_ids(database) == ["4"]
    with database.read() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM event_ids")) == 1


def test_a_rehearsal_says_the_same(database: Database, clock: SetClock) -> None:
    erase(database, clock)
    sent = [event("1", user=GONE), event("1", user=GONE), event("2")]
    rehearsed = send(database, *sent, validate_only=True)
    assert counts(rehearsed) == (1, 0, 2)
    assert rehearsed == send(database, *sent)


def test_an_import_that_is_copied_refuses_them_too(database: Database, clock: SetClock) -> None:
    erase(database, clock)
    sent = [event(f"e{n:04}", user=GONE if n % 500 == 7 else f"u{n % 9}") for n in range(2_500)]
    report = ingest(database, sent, clock=clock, clock_tolerance=TOLERANCE, together=5_000)
    assert counts(report) == (2_495, 0, 5)
    assert {r.code for r in report.rejected} == {"erased_user"}
    assert rows_that_say(database, GONE) == []
    assert len(stored_ids(database)) == 2_495


def test_a_user_who_comes_back_begins_anew(database: Database, clock: SetClock) -> None:
    send(database, event("1", user=GONE))
    erase(database, clock)
    clock.advance(minutes=2)
    later = event("2", user=GONE, occurred_at=clock().isoformat())

    assert counts(send(database, event("1", user=GONE))) == (0, 0, 1)
    assert counts(ingest(database, [later], clock=clock, clock_tolerance=TOLERANCE)) == (1, 0, 0)

    record(database, recommendation(GONE, clock()))
    assert recorded(database) == [GONE]
    assert erase(database, clock) == (1, 1)  # and may go again
    assert counts(ingest(database, [later], clock=clock, clock_tolerance=TOLERANCE)) == (0, 0, 1)


def test_an_event_of_a_clock_that_is_ahead_does_not_come_back_either(database: Database, clock: SetClock) -> None:
    ahead = event("1", user=GONE, occurred_at=(clock() + timedelta(minutes=4)).isoformat())
    send(database, ahead)
    erase(database, clock)
    assert counts(send(database, ahead)) == (0, 0, 1)


def test_a_recommendation_that_was_on_its_way_is_not_recorded(database: Database, clock: SetClock) -> None:
    """Whatever the clock of the replica that made it says, within a minute."""
    erase(database, clock)
    seconds = (-300, 0, 59)
    record(
        database,
        *(recommendation(GONE, clock() + timedelta(seconds=n)) for n in seconds),
        recommendation("stays", clock()),
        recommendation(None, clock()),
        recommendation(GONE, clock() + timedelta(seconds=61)),
    )
    assert sorted(recorded(database), key=str) == [None, "stays", GONE]


def test_erasing_again_keeps_what_is_refused(database: Database, clock: SetClock) -> None:
    erase(database, clock)
    clock.now -= timedelta(days=2)  # another replica's clock
    erase(database, clock)
    assert counts(send(database, event("1", user=GONE))) == (0, 0, 1)


def test_a_user_who_was_never_seen_can_be_erased_before_the_events_come(database: Database, clock: SetClock) -> None:
    assert erase(database, clock) == (0, 0)
    assert counts(send(database, event("1", user=GONE))) == (0, 0, 1)


# How a user is remembered


def test_hashes_are_keyed_by_the_store(database: Database, clock: SetClock) -> None:
    erase(database, clock)
    with database.read() as connection:
        erasures = repository.read_erasures(connection)
        assert erasures is not None
        assert len(erasures.salt) == 32
        assert repository.find(connection, erasures.digest(GONE)) is not None
        assert repository.find(connection, erasures.digest("other")) is None
    other = repository.Erasures(b"another salt", 0, None)
    assert other.digest(GONE) != erasures.digest(GONE)


def test_what_learnt_from_a_user_who_was_erased_since_is_refused(database: Database, clock: SetClock) -> None:
    erase(database, clock, "long gone")
    with database.read() as connection:
        erasures = count_erasures(connection)
    erase(database, clock)
    for users, refused in ((("a", GONE), True), (("a", "long gone"), False), ((), False)):
        with database.write() as connection:
            if refused:
                with pytest.raises(Overtaken, match="1 of the users that it learnt from were erased"):
                    require_none_erased(connection, Learners(users, erasures))
            else:
                require_none_erased(connection, Learners(users, erasures))


def test_many_learners_are_asked_about_in_parts(database: Database, clock: SetClock) -> None:
    for user in ("u7", "u24999"):
        erase(database, clock, user)
    with database.write() as connection:
        assert repository.erased_since(connection, 0, [f"u{n}" for n in range(25_000)]) == 2
        assert repository.erased_since(connection, 1, [f"u{n}" for n in range(25_000)]) == 1


def test_a_seq_of_a_refused_event_is_a_gap_and_no_more(database: Database, clock: SetClock) -> None:
    erase(database, clock)
    send(database, event("a", user=GONE), event("b"))
    send(database, event("c"))
    with database.read() as connection:
        assert [row.event_id for row in connection.execute(sa.select(events).order_by(events.c.seq))] == ["b", "c"]


def test_an_event_that_comes_while_its_user_is_erased_is_a_new_users(
    database: Database, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was accepted after the mark was set, so it is not deleted with what was there before."""
    send(database, event("old", user=GONE))
    note = users_service._note

    def noted(*asked: Any) -> datetime:
        through = note(*asked)
        clock.advance(seconds=5)
        new = event("new", user=GONE, occurred_at=clock().isoformat())
        assert counts(ingest(database, [new], clock=clock, clock_tolerance=TOLERANCE)) == (1, 0, 0)
        return through

    monkeypatch.setattr(users_service, "_note", noted)
    assert erase(database, clock) == (1, 0)
    assert stored_ids(database) == ["new"]
