"""Files of items and events into real stores."""

import gzip
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.catalog.service import get_item
from service.events.tables import events
from service.kit.db import Database
from tests.conftest import SetClock
from trainer.file_import import import_events, import_items
from trainer.formats import Format, Table, open_table
from trainer.import_report import ImportReport, Refusal

TOLERANCE = timedelta(minutes=5)


def csv(folder: Path, text: str, name: str = "file.csv") -> Table:
    (folder / name).write_text(text)
    return open_table(folder / name, Format.CSV)


def take_events(database: Database, clock: SetClock, table: Table, event_type: str = "interaction") -> ImportReport:
    return import_events(database, clock, table, clock_tolerance=TOLERANCE, event_type=event_type)


def stored(database: Database, *columns: str) -> list[tuple[object, ...]]:
    with database.read() as connection:
        rows = connection.execute(sa.select(*(events.c[name] for name in columns)).order_by(events.c.seq))
        return [tuple(row) for row in rows]


def test_items_are_created_and_the_same_file_again_changes_nothing(
    database: Database, clock: SetClock, tmp_path: Path
) -> None:
    table = csv(tmp_path, "item_id,title,categories,available\na,Apple,Fruit|Red,\nb,Bread,,false\n")
    assert import_items(database, clock, table).outcomes == {"created": 2, "updated": 0, "unchanged": 0}
    assert import_items(database, clock, table).outcomes == {"created": 0, "updated": 0, "unchanged": 2}
    apple, bread = get_item(database, "a"), get_item(database, "b")
    assert (apple.title, apple.categories, apple.available) == ("Apple", ["Fruit", "Red"], True)
    assert bread.available is False


def test_wrong_items_are_refused_by_line_and_the_others_go_in(
    database: Database, clock: SetClock, tmp_path: Path
) -> None:
    table = csv(tmp_path, "item_id,title,available\na,Apple,maybe\n,Bread,\nc,Corn\nd,Dill,yes\nd,Dill,no\n")
    report = import_items(database, clock, table)
    assert report.outcomes["created"] == 1
    assert [refusal.line for refusal in report.refusals] == [2, 3, 4, 6]
    assert get_item(database, "d").available is True


def test_more_items_than_a_batch_all_arrive(database: Database, clock: SetClock, tmp_path: Path) -> None:
    table = csv(tmp_path, "item_id,title\n" + "".join(f"i{i},Item {i}\n" for i in range(1_001)))
    batches: list[int] = []
    report = import_items(database, clock, table, lambda: batches.append(table.done))
    assert report.outcomes["created"] == 1_001
    assert len(batches) == (1 if database.dialect == "postgresql" else 3)
    assert batches[-1] == table.size


def test_unix_seconds_become_the_time_of_an_event(database: Database, clock: SetClock, tmp_path: Path) -> None:
    report = take_events(database, clock, csv(tmp_path, "user_id,item_id,timestamp\nu,i,1.5\n"), "rating")
    assert report.outcomes == {"accepted": 1, "duplicates": 0}
    assert report.unknown_items == 1
    moment = datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
    assert stored(database, "user_id", "event_type", "occurred_at") == [("u", "rating", moment)]


def test_every_field_of_an_event_may_be_a_column(database: Database, clock: SetClock, tmp_path: Path) -> None:
    header = "event_id,user_id,item_id,event_type,occurred_at,value,position,properties,colour"
    table = csv(tmp_path, header + '\ne1,u,i,click,2026-02-01T00:00:00+01:00,4.5,3,"{""a"":1}",red\n')
    report = take_events(database, clock, table)
    assert report.ignored_columns == ["colour"]
    assert stored(database, "event_id", "value", "position", "properties") == [("e1", 4.5, 3, {"a": 1})]


def test_importing_a_file_again_counts_nothing_twice_even_for_equal_rows(
    database: Database, clock: SetClock, tmp_path: Path
) -> None:
    table = csv(tmp_path, "user_id,item_id,timestamp\nu,i,10\nu,i,10\n")
    assert take_events(database, clock, table).outcomes == {"accepted": 2, "duplicates": 0}
    assert take_events(database, clock, table).outcomes == {"accepted": 0, "duplicates": 2}
    assert len(stored(database, "seq")) == 2


def test_a_record_that_swallowed_the_next_is_corrected_where_it_stands(
    database: Database, clock: SetClock, tmp_path: Path
) -> None:
    broken = csv(tmp_path, 'user_id,item_id,timestamp\nu,"i,10\nv,j",20\nw,k,30\n')
    assert take_events(database, clock, broken).outcomes == {"accepted": 1, "duplicates": 0}
    whole = csv(tmp_path, "user_id,item_id,timestamp\nu,i,10\nv,j,20\nw,k,30\n")
    assert take_events(database, clock, whole).outcomes == {"accepted": 2, "duplicates": 1}


@pytest.mark.parametrize("header", ["user_id,item_id,timestamp", '"user_id",item_id,timestamp,"a\nnote"'])
def test_an_event_is_named_by_its_line_below_the_header(
    database: Database, clock: SetClock, tmp_path: Path, header: str
) -> None:
    take_events(database, clock, csv(tmp_path, f"{header}\nu,i,10{',' * (header.count(',') - 2)}\n"))
    assert stored(database, "event_id") == [("a8b9cacf-ca49-503a-a688-52dc2d54d7e6",)]


def test_wrong_events_are_refused_by_line_and_the_others_are_stored(
    database: Database, clock: SetClock, tmp_path: Path
) -> None:
    future = int(clock.now.timestamp()) + 3_600
    rows = ["u,i,soon,", "u,i,10,x", "u,i", f"u,i,{future},", ",i,10,", "u,i,10,1"]
    report = take_events(database, clock, csv(tmp_path, "user_id,item_id,timestamp,value\n" + "\n".join(rows)))
    assert report.outcomes["accepted"] == 1
    assert report.refused == 5
    refused = {refusal.line: refusal.code for refusal in report.refusals}
    assert refused == {line: "future_event" if line == 5 else "invalid_event" for line in (2, 3, 4, 5, 6)}


def test_the_same_event_id_with_other_content_is_a_conflict(
    database: Database, clock: SetClock, tmp_path: Path
) -> None:
    table = csv(tmp_path, "event_id,user_id,item_id,timestamp\ne,u,i,10\ne,u,j,10\n")
    (refusal,) = take_events(database, clock, table).refusals
    assert (refusal.line, refusal.code) == (3, "event_id_conflict")


def test_events_against_the_order_of_time_are_counted(database: Database, clock: SetClock, tmp_path: Path) -> None:
    table = csv(tmp_path, "user_id,item_id,timestamp\nu,i,30\nu,j,10\nu,k,20\n")
    assert take_events(database, clock, table).out_of_order == 1


def test_what_a_file_holds_before_it_is_cut_off_is_stored_and_the_whole_one_goes_on_there(
    database: Database, clock: SetClock, tmp_path: Path
) -> None:
    text = "user_id,item_id,timestamp\n" + "".join(f"u{i},i,{i}\n" for i in range(5_000))
    path, whole = tmp_path / "events.csv.gz", gzip.compress(text.encode())
    path.write_bytes(whole[: len(whole) // 2])
    first = take_events(database, clock, open_table(path, Format.CSV))
    assert "the gzip file is cut off or damaged" in (first.cut_off or "")
    accepted = first.outcomes["accepted"]
    assert 0 < accepted < 5_000
    path.write_bytes(whole)
    second = take_events(database, clock, open_table(path, Format.CSV))
    assert second.cut_off is None
    assert second.outcomes == {"accepted": 5_000 - accepted, "duplicates": accepted}
    assert len(stored(database, "seq")) == 5_000


def test_the_same_events_from_parquet_and_from_csv_count_once(
    database: Database, clock: SetClock, tmp_path: Path
) -> None:
    polars = pytest.importorskip("polars")
    polars.DataFrame({"user_id": [1], "item_id": [2], "timestamp": [10]}).write_parquet(tmp_path / "events.parquet")
    take_events(database, clock, open_table(tmp_path / "events.parquet", Format.PARQUET))
    again = take_events(database, clock, csv(tmp_path, "user_id,item_id,timestamp\n1,2,10\n"))
    assert again.outcomes == {"accepted": 0, "duplicates": 1}
    assert len(stored(database, "seq")) == 1


def test_a_report_keeps_a_thousand_refusals_and_counts_them_all() -> None:
    report = ImportReport({"accepted": 0})
    for line in range(1_500):
        report.refuse(line, "invalid_event", "wrong")
    assert report.refused == 1_500
    assert len(report.refusals) == 1_000
    assert report.refusals[0] == Refusal(0, "invalid_event", "wrong")


def test_a_file_of_several_batches_is_imported_whole_with_its_refusals_in_order(
    database: Database, clock: SetClock, tmp_path: Path
) -> None:
    lines = [f"e{n},u{n % 9},i{n % 7},{n}" for n in range(10_040)]
    lines[3] = "e3,u,i,soon"
    lines[10_020] = "e5,u,other,7"  # e5's again, from the first batch, with other content
    lines[10_030] = lines[4]
    table = csv(tmp_path, "event_id,user_id,item_id,timestamp\n" + "\n".join(lines))
    report = take_events(database, clock, table)
    assert report.outcomes == {"accepted": 10_037, "duplicates": 1}
    assert [(refusal.line, refusal.code) for refusal in report.refusals] == [
        (5, "invalid_event"),
        (10_022, "event_id_conflict"),
    ]
    assert take_events(database, clock, table).outcomes == {"accepted": 0, "duplicates": 10_038}
    assert len(stored(database, "seq")) == 10_037
