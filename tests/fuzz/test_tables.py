"""Whatever file is imported: it goes in, row by row, or is refused; it is not changed, and the memory stays small."""

import gzip
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.errors import DatasetCutOff, DatasetError
from service.kit import migrate
from service.kit.db import Database
from tests.conftest import SetClock
from tests.fuzz.inputs import EXAMPLES, PIECES, any_text, edited, fuzz, worded, zipped
from trainer.datasets import load_dataset
from trainer.file_import import import_events, import_items
from trainer.formats import Format, Options, Table, open_table, open_tables
from trainer.formats.opening import EVENTS, ITEMS
from trainer.import_report import ImportReport

ITEM_FILE = (
    b"item_id,title,categories,brand,description,available\n"
    b'i1,Red,"A|B",Rouge,"two\nlines",true\ni2,Blue,"[""A""]",,,no\n'
)
EVENT_FILE = (
    b"event_id,user_id,item_id,occurred_at,timestamp,value,position,properties\n"
    b'e1,u,i1,2026-01-01T00:00:00Z,,4.5,3,"{""a"":1}"\n,u,i2,,10,,,\n'
)

cells = st.one_of(
    st.sampled_from(
        ["", "u", "i1", "10", "1e400", "nan", "-0", "9" * 5_000, "1_0", "[", '{"a":' * 50, "true", "\x00", "=1+1"]
    ),
    st.sampled_from(["2026-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "T", "٣"]),
    any_text.map(lambda text: text.encode("utf-8", "replace").decode()),
)
columns = st.lists(
    st.sampled_from(
        ["item_id", "title", "user_id", "timestamp", "occurred_at", "value", "properties", "available", "event_id", "x"]
    )
    | cells,
    min_size=1,
    max_size=9,
)


@st.composite
def spreadsheets(draw: st.DrawFn) -> bytes:
    header = draw(columns | st.just(["item_id", "title", "available"]) | st.just(["user_id", "item_id", "timestamp"]))
    rows = draw(
        st.lists(st.lists(cells, min_size=len(header), max_size=len(header) + draw(st.integers(0, 1))), max_size=4)
    )
    end, quote = draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"])), draw(st.sampled_from(['"', ""]))
    lines = [",".join(quote + cell.replace('"', '""') + quote for cell in row) for row in [header, *rows]]
    return end.join(lines).encode(
        draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])), "replace"
    )


plain = st.one_of(
    edited(ITEM_FILE),
    edited(EVENT_FILE),
    spreadsheets(),
    st.binary(max_size=80),
    st.lists(st.sampled_from(PIECES)).map(b"".join),
)
files = st.one_of(plain, plain.map(zipped), plain.map(zipped).flatmap(lambda data: edited(data, most=2)))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('store') / 'adaptide.db'}")
    migrate.upgrade(database)
    yield database
    database.close()


def take(store: Database, path: Path, format: Format) -> None:
    """Both imports of one file, each of which may refuse it."""
    clock, before = SetClock(), path.read_bytes()
    for what in (ITEMS, EVENTS):
        try:
            table = open_table(path, format, what)
            report = (
                import_items(store, clock, table)
                if what == ITEMS
                else import_events(store, clock, table, clock_tolerance=timedelta(minutes=5))
            )
        except DatasetError as refused:
            worded(refused)
        else:
            counted(table, report)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def counted(table: Table, report: ImportReport) -> None:
    """Every row became something."""
    rows = 0
    with suppress(DatasetCutOff):
        for _ in table.rows():
            rows += 1
    assert report.imported + report.refused == rows
    assert all(refusal.detail.encode() for refusal in report.refusals)


@fuzz(150)
@given(data=files)
@example(data=b"item_id,title\n" + b"i1,\xed\xa0\x80\n")
@example(data=b"\xef\xbb\xbf\xef\xbb\xbfitem_id,title\ni1,a\n")
@example(data=b"item_id,title\ri1,a\rb,c")
@example(data=b"\x1f\x8b")
@example(data=zipped(EVENT_FILE)[:-4])
@example(data=zipped(EVENT_FILE) + b"\x00" * 8 + b"more")
@example(data=b'user_id,item_id,timestamp,properties\nu,i,1,"' + b"[" * 5_000 + b'"\n')
def test_any_csv_goes_in_or_is_refused(store: Database, tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("file") / "table.csv"
    path.write_bytes(data)
    take(store, path, Format.CSV)


@fuzz(50)
@given(items=edited(ITEM_FILE), interactions=edited(b"user_id,item_id,timestamp\nu,i1,10\nv,i2,1.5\n"))
def test_any_folder_is_a_data_set_or_refused(
    tmp_path_factory: pytest.TempPathFactory, items: bytes, interactions: bytes
) -> None:
    folder = tmp_path_factory.mktemp("folder")
    (folder / "items.csv").write_bytes(items)
    (folder / "interactions.csv").write_bytes(interactions)
    try:
        dataset = load_dataset(str(folder), folder / "home")
    except DatasetError as refused:
        worded(refused)
        return
    assert dataset.items
    assert len(dataset.interactions)


PUBLISHED = [
    (
        Format.JSONL,
        "e.jsonl",
        b'{"user_id":"u","item_id":1,"timestamp":5,"title":"t","categories":["a"],"available":true}\n{"value":1e400}\n',
    ),
    (
        Format.AMAZON_2023,
        "r.jsonl",
        b'{"user_id":"u","parent_asin":"p","timestamp":1588687728923,"rating":5,"helpful_vote":[{}]}\n',
    ),
    (
        Format.AMAZON_2023,
        "meta.jsonl",
        b'{"parent_asin":"p","title":null,"description":[1,"a"],"categories":"x","store":{"a":1}}\n',
    ),
    (Format.AMAZON_2023, "r.csv", b"user_id,parent_asin,rating,timestamp\nu,p,5.0,1588687728923\n"),
    (Format.MOVIELENS, "u.data", b"196\t7\t3\t881250949\n\n1\t2\n"),
    (Format.MOVIELENS, "u.item", b"7|Mis\xe9rables|01-Jan-1995||http://a|" + b"|".join([b"0"] * 19) + b"\n"),
    (Format.MOVIELENS, "ratings.dat", b"1::1::5::978300760\n::::::\n"),
    (Format.MOVIELENS, "movies.csv", b'movieId,title,genres\n1,"City, The",A|B\n'),
    (Format.MOVIELENS, "tags.csv", b"userId,movieId,tag,timestamp\n2,1,funny,1445714994\n"),
    (Format.RECBOLE, "x.inter", b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t7\t3\t881250949\n"),
    (
        Format.RECBOLE,
        "x.item",
        b"item_id:token\ttitle:token_seq\trelease_year:token\tclass:token_seq\n7\tToy\t1995\t'A', \"B\"\n",
    ),
]


@fuzz(150)
@given(data=st.data())
def test_any_file_of_a_published_format_goes_in_or_is_refused(
    store: Database, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    format, name, whole = data.draw(st.sampled_from(PUBLISHED))
    path = tmp_path_factory.mktemp("file") / name
    path.write_bytes(data.draw(edited(whole) | edited(whole).map(zipped) | st.just(whole)))
    take(store, path, format)
    for kind in (ITEMS, EVENTS):
        with suppress(DatasetError):
            open_tables(path, None, kind, Options())


def parquet(frame: dict[str, list[Any]]) -> bytes:
    polars = pytest.importorskip("polars")
    file = io.BytesIO()
    polars.DataFrame(frame, strict=False).write_parquet(file)
    return file.getvalue()


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(st.characters(codec="utf-8"), max_size=10),
    st.binary(max_size=5),
    st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)),
    st.just(datetime(2026, 1, 1, tzinfo=UTC)),
    st.just(date(2026, 1, 1)),
    st.just(timedelta(1)),
    st.just(Decimal("1.5")),
    st.lists(st.text(st.characters(codec="utf-8"), max_size=4), max_size=3),
    st.fixed_dictionaries({"a": st.integers(0, 9) | st.none()}),
)
names = [
    "item_id",
    "title",
    "categories",
    "available",
    "user_id",
    "timestamp",
    "occurred_at",
    "properties",
    "value",
    "position",
]
frames = st.lists(st.sampled_from(names), min_size=3, unique=True).flatmap(
    lambda chosen: st.fixed_dictionaries({name: values.flatmap(lambda v: st.just([v, None, v])) for name in chosen})
)


@fuzz(60)
@given(frame=frames)
@example(frame={"item_id": [1], "title": [2.5], "available": [b"x"]})
@example(frame={"user_id": [2**63 - 1], "item_id": ["i"], "timestamp": [float("nan")]})
@example(frame={"user_id": ["u"], "item_id": ["i"], "occurred_at": [datetime(2026, 1, 1)]})
def test_any_parquet_columns_go_in_or_are_refused(
    store: Database, tmp_path_factory: pytest.TempPathFactory, frame: dict[str, list[Any]]
) -> None:
    path = tmp_path_factory.mktemp("file") / "table.parquet"
    path.write_bytes(parquet(frame))
    take(store, path, Format.PARQUET)


@fuzz(60)
@given(edits=st.data())
def test_any_damaged_parquet_goes_in_or_is_refused(
    store: Database, tmp_path_factory: pytest.TempPathFactory, edits: st.DataObject
) -> None:
    whole = parquet({"item_id": ["i1", "i2"], "title": ["a", None], "user_id": ["u", "u"], "timestamp": [1.0, 2.0]})
    path = tmp_path_factory.mktemp("file") / "table.parquet"
    path.write_bytes(edits.draw(edited(whole, most=2)))
    take(store, path, Format.PARQUET)


PIECE = 2**20
BOMBS = {
    "one line": (b"", b"a"),
    "a header of commas": (b"", b","),
    "one row": (b"user_id,item_id,timestamp\nu,i,", b"1"),
    "one row of commas": (b"user_id,item_id,timestamp\n", b","),
    "a quote that is never closed": (b'user_id,item_id,timestamp\nu,i,"', b"ab\n"),
    "a record over many lines": (b'user_id,item_id,timestamp\n"', b'\n","'),
    "long rows": (b"user_id,item_id,timestamp,x\n", b"u,i,1," + b"a" * (PIECE // 2 - 7) + b"\n"),
}


IMPORT = """
import json, sys
from datetime import timedelta
from pathlib import Path
from service.errors import DatasetError
from service.kit import migrate
from service.kit.clock import utc_now
from service.kit.db import Database
from trainer.file_import import import_events
from trainer.formats import Format, open_table


def highest():  # MiB; unlike rusage's it does not begin with the parent's
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024


grown, folder = {}, Path(sys.argv[1])
database = Database(f"sqlite:///{folder / 'adaptide.db'}")
migrate.upgrade(database)
for path in (folder / "small.csv", *sorted(folder.glob("*.gz"))):
    before = highest()
    try:
        import_events(database, utc_now, open_table(path, Format.CSV), clock_tolerance=timedelta(0))
    except DatasetError as refused:
        assert len(refused.detail) < 1_000
    grown[path.name] = highest() - before
print(json.dumps(grown))
"""


def test_a_gzip_file_that_unpacks_to_very_much_takes_little_memory(tmp_path: Path) -> None:
    (tmp_path / "small.csv").write_text("user_id,item_id,timestamp\nu,i,1\n")
    for shape, (start, repeated) in BOMBS.items():
        piece = gzip.compress(repeated * (PIECE // len(repeated)))
        with (tmp_path / f"{shape}.csv.gz").open("wb") as file:  # members of one gzip file, unpacked one after another
            file.write(gzip.compress(start))
            for _ in range(4 * 1024 if EXAMPLES else 160):
                file.write(piece)
    ran = subprocess.run([sys.executable, "-c", IMPORT, str(tmp_path)], capture_output=True, text=True, check=True)
    grown = json.loads(ran.stdout)
    assert grown.keys() == {"small.csv", *(f"{shape}.csv.gz" for shape in BOMBS)}
    assert sum(grown.values()) - grown["small.csv"] < 130, grown
