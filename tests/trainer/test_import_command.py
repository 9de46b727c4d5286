"""`adaptide import` and `adaptide export`, from the command line into real stores and back."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner, Result

from service.audit.tables import audit_log
from service.catalog.service import get_item
from service.errors import AdaptideError, InvalidRequest, StoreUnavailable
from service.events.tables import events
from service.kit.clock import utc_now
from service.kit.db import Database
from service.recommend.tables import recommendations
from service.settings import Settings
from tests.disks import no_room
from trainer.cli import app
from trainer.parquet_export import export_events

pytest.importorskip("polars")


@pytest.fixture
def adaptide(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("ADAPTIDE_DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("ADAPTIDE_HOME", str(settings.home))

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


def report(done: Result) -> dict[str, Any]:
    if isinstance(done.exception, Exception) and not isinstance(done.exception, SystemExit):
        raise done.exception
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def stored(database: Database, *columns: str) -> list[tuple[Any, ...]]:
    with database.read() as connection:
        rows = connection.execute(sa.select(*(events.c[name] for name in columns)).order_by(events.c.seq))
        return [tuple(row) for row in rows]


def test_columns_are_mapped_units_and_zones_named(adaptide: Any, database: Database, tmp_path: Path) -> None:
    file = tmp_path / "clicks.csv"
    file.write_text("who,asin,when,what\nu,i,2026-01-01 12:00:00,click\nu,j,2026-01-01T13:00:00+01:00,view\n")
    asked = ("import", "events", file, "--map", "user_id=who", "--map", "item_id=asin", "--map", "occurred_at=when")
    found = report(adaptide(*asked, "--map", "event_type=what", "--timezone", "Europe/Berlin", "--json"))
    assert (found["accepted"], found["refused"]) == (2, 0)
    assert stored(database, "event_type", "occurred_at") == [
        ("click", datetime(2026, 1, 1, 11, tzinfo=UTC)),
        ("view", datetime(2026, 1, 1, 12, tzinfo=UTC)),
    ]


def test_a_dry_run_says_the_same_and_stores_nothing(adaptide: Any, database: Database, tmp_path: Path) -> None:
    file = tmp_path / "e.csv"
    file.write_text("user_id,item_id,timestamp\nu,i,1\nu,i,no\n")
    (tmp_path / "i.csv").write_text("item_id,title\na,Apple\n")
    found = report(adaptide("import", "events", file, "--dry-run", "--json"))
    assert (found["accepted"], found["refused"], found["dry_run"]) == (1, 1, True)
    assert report(adaptide("import", "items", tmp_path / "i.csv", "--dry-run", "--json"))["created"] == 1
    assert stored(database, "seq") == []
    with pytest.raises(AdaptideError):
        get_item(database, "a")


def test_every_refusal_is_written_with_its_line(adaptide: Any, tmp_path: Path) -> None:
    file, refusals = tmp_path / "e.csv", tmp_path / "refused.jsonl"
    file.write_text("user_id,item_id,timestamp,value\nu,i,1,nan\nu,i,-5,\nu,i,9e99,\n,i,1,\nu,i,2,\n")
    found = report(adaptide("import", "events", file, "--refusals", refusals, "--json"))
    assert (found["accepted"], found["refused"]) == (1, 4)
    lines = [json.loads(line) for line in refusals.read_text().splitlines()]
    assert sorted(line["line"] for line in lines) == [2, 3, 4, 5]
    assert {line["file"] for line in lines} == {str(file)}


def test_refusals_are_written_anew_by_the_same_command_and_over_nothing_else(adaptide: Any, tmp_path: Path) -> None:
    file, refusals, mine = tmp_path / "e.csv", tmp_path / "refused.jsonl", tmp_path / "mine.jsonl"
    file.write_text("user_id,item_id,timestamp\nu,i,no\nu,i,soon\nu,i,1\n")
    for lines in (2, 2):
        report(adaptide("import", "events", file, "--refusals", refusals, "--json"))
        assert len(refusals.read_text().splitlines()) == lines
    mine.write_text('{"user_id": "u"}\n')
    link = tmp_path / "link"
    link.symlink_to(refusals)
    for other, why in ((mine, "holds something else"), (file, "holds something else"), (link, "is a link")):
        before = other.read_text()
        assert why in str(adaptide("import", "events", file, "--refusals", other).exception)
        assert other.read_text() == before


def test_refusals_that_cannot_be_written_are_said(adaptide: Any, tmp_path: Path) -> None:
    file = tmp_path / "e.csv"
    file.write_text("user_id,item_id,timestamp\nu,i,no\n")
    said = str(adaptide("import", "events", file, "--refusals", "/dev/full").exception)
    assert "/dev/full cannot be written: No space left on device" in said


def test_only_the_first_rows_are_read_and_equal_ones_may_count_once(
    adaptide: Any, database: Database, tmp_path: Path
) -> None:
    file = tmp_path / "e.csv"
    file.write_text("user_id,item_id,timestamp\n" + "u,i,1\n" * 5)
    assert report(adaptide("import", "events", file, "--limit", 2, "--json"))["accepted"] == 2
    found = report(adaptide("import", "events", file, "--distinct", "--json"))
    assert (found["accepted"], found["duplicates"]) == (1, 4)
    assert len(stored(database, "seq")) == 3


def test_rows_that_are_stored_are_skipped_by_their_names(adaptide: Any, tmp_path: Path) -> None:
    file = tmp_path / "e.csv"
    lines = [f"u{n},i,{n}" for n in range(50)]
    file.write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    report(adaptide("import", "events", file, "--json"))
    lines[7] = "u7,corrected,7"
    file.write_text("\n".join(["user_id,item_id,timestamp", *lines, "new,i,50"]))
    found = report(adaptide("import", "events", file, "--json"))
    assert (found["accepted"], found["duplicates"], found["skipped"]) == (2, 49, 49)


def test_a_cut_off_file_ends_with_1_and_keeps_what_was_read(adaptide: Any, database: Database, tmp_path: Path) -> None:
    file = tmp_path / "e.csv.gz"
    whole = gzip.compress(("user_id,item_id,timestamp\n" + "".join(f"u{n},i,{n}\n" for n in range(9_999))).encode())
    file.write_bytes(whole[:-3_000])
    done = adaptide("import", "events", file)
    assert done.exit_code == 1
    assert "What came before is stored. Import the whole file when you have it" in done.output
    assert 0 < len(stored(database, "seq")) < 9_999


def test_a_folder_of_movielens_needs_no_option(adaptide: Any, database: Database, tmp_path: Path) -> None:
    (tmp_path / "movies.dat").write_bytes("1::Café (1995)::Comedy\n".encode("latin-1"))
    (tmp_path / "ratings.dat").write_text("9::1::5::978300760\n")
    assert report(adaptide("import", "items", tmp_path, "--json"))["created"] == 1
    assert report(adaptide("import", "events", tmp_path, "--json"))["accepted"] == 1
    assert get_item(database, "1").title == "Café (1995)"
    assert stored(database, "user_id", "event_type", "value") == [("9", "rating", 5.0)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--map", "asin"), "is not NAME=COLUMN"),
        (("--map", "item_id=a", "--map", "item_id=b"), "names 'item_id' a second time"),
        (("--encoding", "klingon"), "the encoding 'klingon' is not known"),
        (("--timezone", "Mars"), "the time zone 'Mars' is not known"),
        (("--delimiter", "::"), "--delimiter is one character"),
        (("--refusals", "/nowhere/at/all"), "/nowhere/at/all cannot be written"),
    ],
)
def test_wrong_options_are_refused_in_words(adaptide: Any, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    (tmp_path / "e.csv").write_text("user_id,item_id,timestamp\nu,i,1\n")
    assert said in str(adaptide("import", "events", tmp_path / "e.csv", *options).exception)


def test_a_killed_import_goes_on_where_it_was(
    settings: Settings, database: Database, adaptide: Any, tmp_path: Path
) -> None:
    file = tmp_path / "e.csv"
    with file.open("w") as rows:
        rows.write("user_id,item_id,timestamp\n")
        rows.writelines(f"u{n % 99},i{n % 77},{n}\n" for n in range(60_000))
    command = [sys.executable, "-m", "trainer.cli", "import", "events", str(file)]
    started = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not stored(database, "seq"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started.send_signal(signal.SIGKILL)
    started.wait()
    before = len(stored(database, "seq"))
    found = report(adaptide("import", "events", file, "--json"))
    assert found["accepted"] == 60_000 - before
    assert found["skipped"] == before
    assert len(stored(database, "seq")) == 60_000


def test_exported_events_are_duplicates_when_they_are_imported(
    adaptide: Any, database: Database, tmp_path: Path
) -> None:
    file, out = tmp_path / "e.csv", tmp_path / "out.parquet"
    file.write_text(
        "user_id,item_id,timestamp,value,position,properties\n"
        'u,i,1.25,4.5,3,"{""a"": [1, {""b"": null}]}"\nv,j,2,,,\nw,j,3,,,\n'
    )
    report(adaptide("import", "events", file, "--json"))
    assert report(adaptide("export", "events", out, "--json"))["rows"] == 3
    assert out.stat().st_mode & 0o777 == 0o600
    found = report(adaptide("import", "events", out, "--json"))
    assert (found["accepted"], found["duplicates"], found["refused"]) == (0, 3, 0)
    assert found["ignored_columns"] == ["seq", "received_at"]
    part = tmp_path / "part.parquet"
    asked = ("--since", "1970-01-01T00:00:02Z", "--until", "1970-01-01T00:00:03")
    assert report(adaptide("export", "events", part, *asked, "--json"))["rows"] == 1
    with database.read() as connection:
        assert connection.scalars(sa.select(audit_log.c.action)).all() == ["events.export"] * 2


def test_recommendations_are_exported_with_their_items_as_structs(
    adaptide: Any, database: Database, tmp_path: Path
) -> None:
    import polars

    row = {
        "recommendation_id": "0190d4f0-0000-7000-8000-000000000000",
        "user_id": "u",
        "created_at": utc_now(),
        "strategy": "popular",
        "catalog_revision": 3,
        "history": ["a"],
        "items": [["b", -0.5], ["c", 1]],
    }
    with database.write() as connection:
        connection.execute(recommendations.insert().values(**row))
    out = tmp_path / "out.parquet"
    report(adaptide("export", "recommendations", out, "--json"))
    frame = polars.read_parquet(out)
    assert frame.columns == [column.name for column in recommendations.columns]
    (found,) = frame.to_dicts()
    assert found["items"] == [{"item_id": "b", "score": -0.5}, {"item_id": "c", "score": 1.0}]
    assert (found["history"], found["created_at"], found["adapter_version"]) == (["a"], row["created_at"], None)


def test_an_export_never_replaces_a_file_and_leaves_none_behind(adaptide: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    out.write_text("mine")
    assert "is there already; name a new file" in str(adaptide("export", "events", out).exception)
    assert out.read_text() == "mine"
    assert "cannot be written" in str(adaptide("export", "events", tmp_path / "no" / "out.parquet").exception)
    assert "is no time" in str(adaptide("export", "events", tmp_path / "x", "--since", "soon").exception)
    assert "--until lies before" in str(
        adaptide("export", "events", tmp_path / "x", "--since", "2026-02-01", "--until", "2026-01-01").exception
    )
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".parquet"] == ["out.parquet"]


def test_an_export_onto_a_full_disk_says_so_and_leaves_nothing(
    adaptide: Any, database: Database, tmp_path: Path
) -> None:
    file, folder = tmp_path / "e.csv", tmp_path / "out"
    file.write_text("user_id,item_id,timestamp\n" + "".join(f"u{i},i{i},{i}\n" for i in range(5_000)))
    report(adaptide("import", "events", file, "--json"))
    folder.mkdir()
    with no_room(2**16), pytest.raises(InvalidRequest) as caught:
        export_events(database, folder / "out.parquet", since=None, until=None, on_page=lambda rows: None)
    assert "out.parquet cannot be written: File too large; make room there" in caught.value.detail
    assert list(folder.iterdir()) == []


def test_a_store_that_fails_during_an_export_is_what_is_said(adaptide: Any, database: Database, tmp_path: Path) -> None:
    file, folder = tmp_path / "e.csv", tmp_path / "out"
    file.write_text("user_id,item_id,timestamp\nu,i,1\n")
    report(adaptide("import", "events", file, "--json"))
    folder.mkdir()

    def away(rows: int) -> None:
        raise StoreUnavailable("the store is away")

    with pytest.raises(StoreUnavailable, match="the store is away"):
        export_events(database, folder / "out.parquet", since=None, until=None, on_page=away)
    assert list(folder.iterdir()) == []


def test_made_up_reviews_are_imported_whole_and_in_order(adaptide: Any, tmp_path: Path) -> None:
    file = tmp_path / "made.jsonl.gz"
    script = Path(__file__).parents[2] / "docs/examples/reviews.py"
    subprocess.run([sys.executable, script, "500", file], check=True)
    found = report(adaptide("import", "events", file, "--json"))
    assert (found["accepted"], found["refused"], found["out_of_order"]) == (500, 0, 0)
    assert "parent_asin" not in found["ignored_columns"]
