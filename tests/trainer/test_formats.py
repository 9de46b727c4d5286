"""Every format as its publisher writes it, in a few rows made here, and files as nobody should write them."""

import gzip
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from service.errors import DatasetCutOff, DatasetError
from trainer.formats import Format, Options, Row, Table, open_table, open_tables
from trainer.formats.opening import EVENTS, ITEMS, guess

CSV = "user_id,item_id,timestamp\nu,i,1\n"


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def only(path: Path, kind: str, format: Format | None = None, **options: Any) -> Table:
    (table,) = open_tables(path, format, kind, Options(**options))
    return table


def values(path: Path, kind: str = EVENTS, format: Format | None = None, **options: Any) -> list[dict[str, Any]]:
    return [row.values for row in only(path, kind, format, **options).rows()]


def refusal(path: Path, kind: str = EVENTS, **options: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        list(only(path, kind, **options).rows())
    return caught.value.detail


def problems(table: Table) -> dict[int, str]:
    return {row.line: row.problem for row in table.rows() if row.problem is not None}


def test_a_review_of_amazon_is_an_event_of_its_product(tmp_path: Path) -> None:
    review = (
        b'{"rating": 4.0, "title": "Fine", "text": "Long", "images": [], "asin": "V1", "parent_asin": "P1", '
        b'"user_id": "U", "timestamp": 1588687728923, "helpful_vote": 2, "verified_purchase": true}\n'
    )
    path = put(tmp_path, "All_Beauty.jsonl.gz", gzip.compress(review))
    assert guess(path) is Format.AMAZON_2023
    table = only(path, EVENTS)
    assert table.event_type == "review"
    assert table.unused == ["title", "text", "images"]
    assert [row.values for row in table.rows()] == [
        {
            "user_id": "U",
            "item_id": "P1",
            "timestamp": 1588687728923,
            "value": 4.0,
            "properties": {"verified_purchase": True, "helpful_vote": 2},
        }
    ]


def test_the_meta_of_amazon_are_items(tmp_path: Path) -> None:
    meta = (
        '{"main_category": "All Beauty", "title": "Soap", "features": ["Mild."], "description": ["For hands.", ""], '
        '"price": 3.5, "store": "Suds", "categories": [], "parent_asin": "P1"}\n'
    )
    assert values(put(tmp_path, "meta_All_Beauty.jsonl", meta), ITEMS) == [
        {
            "item_id": "P1",
            "title": "Soap",
            "description": "Mild. For hands. ",
            "categories": ["All Beauty"],
            "brand": "Suds",
        }
    ]


def test_amazons_ratings_alone_are_events_too(tmp_path: Path) -> None:
    path = put(tmp_path, "ratings_only.csv", "user_id,parent_asin,rating,timestamp\nU,P1,5.0,1588687728923\n")
    (event,) = values(path)
    assert (event["item_id"], event["value"], event["timestamp"]) == ("P1", "5.0", "1588687728923")


def test_movielens_100k_is_latin_1_with_bars_and_tabs(tmp_path: Path) -> None:
    flags = "|".join("1" if at in (3, 5) else "0" for at in range(19))
    put(tmp_path, "u.item", f"7|Misérables, Les (1995)|01-Jan-1995||http://a|{flags}\n".encode("latin-1"))
    put(tmp_path, "u.data", "196\t7\t3\t881250949\n")
    assert values(tmp_path, ITEMS) == [
        {"item_id": "7", "title": "Misérables, Les (1995)", "categories": ["Animation", "Comedy"]}
    ]
    assert values(tmp_path) == [{"user_id": "196", "item_id": "7", "timestamp": "881250949", "value": "3"}]


def test_movielens_1m_has_two_colons_between_its_fields(tmp_path: Path) -> None:
    put(tmp_path, "movies.dat", "1::Café: A Story (1995)::Animation|Comedy\n".encode("latin-1"))
    put(tmp_path, "ratings.dat", "1::1::5::978300760\r\n")
    assert values(tmp_path, ITEMS) == [
        {"item_id": "1", "title": "Café: A Story (1995)", "categories": ["Animation", "Comedy"]}
    ]
    assert values(tmp_path) == [{"user_id": "1", "item_id": "1", "timestamp": "978300760", "value": "5"}]


def test_movielens_latest_is_csv_and_its_tags_are_events_of_their_own(tmp_path: Path) -> None:
    put(tmp_path, "movies.csv", 'movieId,title,genres\n1,"City, The (1995)",(no genres listed)\n')
    put(tmp_path, "ratings.csv", "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n")
    tags = put(tmp_path, "tags.csv", "userId,movieId,tag,timestamp\n2,1,funny,1445714994\n")
    assert values(tmp_path, ITEMS) == [{"item_id": "1", "title": "City, The (1995)", "categories": []}]
    assert values(tmp_path)[0]["value"] == "4.0"
    table = only(tags, EVENTS)
    assert table.event_type == "tag"
    assert next(table.rows()).values["properties"] == {"tag": "funny"}


def test_recbole_names_the_type_of_each_column(tmp_path: Path) -> None:
    put(tmp_path, "ml.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t7\t3\t881250949\n")
    put(
        tmp_path,
        "ml.item",
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n7\tToy Story\t1995\tComedy War\n",
    )
    assert values(tmp_path) == [{"user_id": "1", "item_id": "7", "timestamp": "881250949", "value": "3"}]
    assert values(tmp_path, ITEMS) == [{"item_id": "7", "title": "Toy Story (1995)", "categories": ["Comedy", "War"]}]


def test_recbole_may_call_a_column_otherwise(tmp_path: Path) -> None:
    path = put(tmp_path, "x.inter", "uid:token\titem_id:token\ttimestamp:float\nu\ti\t1\n")
    assert "has no column user_id (found: uid, item_id, timestamp)" in refusal(path)
    assert values(path, mapping={"user_id": "uid"}) == [{"user_id": "u", "item_id": "i", "timestamp": "1"}]


def test_recbole_without_types_is_refused_with_what_to_do(tmp_path: Path) -> None:
    assert "'user_id' has no type; write it as user_id:token" in refusal(put(tmp_path, "x.inter", "user_id\nu\n"))


def test_json_lines_may_have_names_that_come_late(tmp_path: Path) -> None:
    lines = '{"user_id": "u", "item_id": 1, "timestamp": 5}\n\n{"item_id": 2, "value": 3}\n'
    assert values(put(tmp_path, "e.jsonl", lines)) == [
        {"user_id": "u", "item_id": 1, "timestamp": 5},
        {"item_id": 2, "value": 3},
    ]


@pytest.mark.parametrize("line", ["[1]", "no", '{"a": 1} {"b": 2}', '"text"', "{" * 5_000])
def test_a_line_that_is_no_object_is_refused_alone(tmp_path: Path, line: str) -> None:
    path = put(tmp_path, "e.jsonl", f'{{"item_id": "a"}}\n{line}\n{{"item_id": "b"}}\n')
    rows = list(only(path, EVENTS).rows())
    assert [row.problem is None for row in rows] == [True, False, True]


@pytest.mark.parametrize("mark", [",", "\t", ";", "|"])
def test_what_separates_the_fields_is_found_in_the_header(tmp_path: Path, mark: str) -> None:
    path = put(tmp_path, "e.csv", CSV.replace(",", mark))
    assert values(path) == [{"user_id": "u", "item_id": "i", "timestamp": "1"}]


def test_columns_are_mapped_by_name(tmp_path: Path) -> None:
    path = put(tmp_path, "e.csv", "user,item_id,asin,timestamp\nu,old,new,1\n")
    (found,) = values(path, mapping={"user_id": "user", "item_id": "asin"})
    assert found == {"user_id": "u", "item_id (of the file)": "old", "item_id": "new", "timestamp": "1"} or (
        found["user_id"],
        found["item_id"],
    ) == ("u", "new")


def test_a_missing_column_names_what_is_there_and_suggests_a_mapping(tmp_path: Path) -> None:
    table = only(put(tmp_path, "e.csv", "customer_id,asin,unixReviewTime\nu,i,1\n"), EVENTS)
    with pytest.raises(DatasetError) as caught:
        table.require("user_id", "item_id", "timestamp")
    assert "found: customer_id, asin, unixReviewTime" in caught.value.detail
    assert "--map user_id=customer_id --map item_id=asin --map timestamp=unixReviewTime" in caught.value.detail


def test_a_mapped_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    said = refusal(put(tmp_path, "e.csv", CSV), mapping={"item_id": "asin"})
    assert "no column 'asin' for --map (found: user_id, item_id, timestamp)" in said


def test_a_byte_order_mark_windows_line_ends_and_quotes_change_nothing(tmp_path: Path) -> None:
    text = '\ufeffuser_id,item_id,timestamp\r\n"u, the ""first""","two\r\nlines",1\r\n'
    assert values(put(tmp_path, "e.csv", text)) == [
        {"user_id": 'u, the "first"', "item_id": "two\r\nlines", "timestamp": "1"}
    ]


def test_another_encoding_is_read_when_it_is_named(tmp_path: Path) -> None:
    path = put(tmp_path, "e.csv", CSV.replace("u,i", "ü,i").encode("utf-16"))
    assert "give the file" not in refusal(path)
    assert "it begins like UTF-16" in refusal(path)
    assert values(path, format=Format.CSV, encoding="utf-16")[0]["user_id"] == "ü"


@pytest.mark.parametrize(
    ("name", "format", "text", "encoding"),
    [
        ("shop.item", Format.RECBOLE, "item_id:token\ttitle:token_seq\n1\tЧай\n", "cp1251"),
        ("shop.item", Format.RECBOLE, "item_id:token\ttitle:token_seq\n1\tЧай\n", "utf-16"),
        ("movies.dat", Format.MOVIELENS, "1::Чай::Drama\n", "cp1251"),
        ("u.item", Format.MOVIELENS, "1|Чай" + "|" * 22 + "\n", "cp1251"),
        ("movies.csv", Format.MOVIELENS, "movieId,title,genres\n1,Чай,\n", "cp1251"),
        ("meta.jsonl", Format.AMAZON_2023, '{"parent_asin": "1", "title": "Чай"}\n', "utf-16"),
    ],
)
def test_published_data_sets_are_read_in_the_encoding_that_is_named(
    tmp_path: Path, name: str, format: Format, text: str, encoding: str
) -> None:
    (tmp_path / name).write_text(text, encoding=encoding)
    (row,) = open_table(tmp_path / name, format, ITEMS, Options(encoding=encoding)).rows()
    assert row.values["title"] == "Чай"


def test_ratings_of_the_older_sets_are_too(tmp_path: Path) -> None:
    for name, format, text in (
        ("u.data", Format.MOVIELENS, "1\t2\t3\t4\n"),
        ("a.inter", Format.RECBOLE, "user_id:token\titem_id:token\ttimestamp:float\n1\t2\t4\n"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-16")
        (row,) = open_table(tmp_path / name, format, EVENTS, Options(encoding="utf-16")).rows()
        assert (row.values["user_id"], row.values["item_id"], row.values["timestamp"]) == ("1", "2", "4")


def test_a_wrong_encoding_is_said(tmp_path: Path) -> None:
    path = put(tmp_path, "e.csv", CSV.replace("u,i", "ü,i").encode("latin-1"))
    assert "give another --encoding" in refusal(path, format=Format.CSV, encoding="utf-16")


def test_bytes_that_are_no_utf8_refuse_their_line_alone(tmp_path: Path) -> None:
    path = put(tmp_path, "e.csv", CSV.encode() + b"caf\xe9,i,2\nv,i,3\n")
    table = only(path, EVENTS)
    rows = list(table.rows())
    assert [row.values.get("user_id") for row in rows] == ["u", None, "v"]
    assert "not UTF-8; save the file as UTF-8 (`adaptide import` takes others: --encoding" in problems(table)[3]


def test_a_broken_quote_refuses_its_record_alone(tmp_path: Path) -> None:
    path = put(tmp_path, "e.csv", CSV + 'v,"i" j,2\nw,i,3\n')
    table = only(path, EVENTS)
    assert [row.line for row in table.rows() if row.problem] == [3]
    assert [row.values.get("user_id") for row in table.rows()] == ["u", None, "w"]


@pytest.mark.parametrize("name", ["long.csv", "long.jsonl"])
def test_a_line_without_an_end_is_refused_in_little_memory_and_the_next_one_is_read(tmp_path: Path, name: str) -> None:
    one, other = ("item_id\na\n", "b\n") if name.endswith("csv") else ('{"item_id": "a"}\n', '{"item_id": "b"}\n')
    path = tmp_path / name
    piece = gzip.compress(b"x" * 2**20)
    with path.open("wb") as file:
        file.write(gzip.compress(one.encode()))
        for _ in range(100):
            file.write(piece)
        file.write(gzip.compress(b"\n" + other.encode()))
    tracemalloc.start()
    rows: list[Row] = list(only(path, ITEMS).rows())
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row.values.get("item_id") for row in rows] == ["a", None, "b"]
    assert "more than 16 MiB" in (rows[1].problem or "")
    assert most < 60 * 2**20


def test_what_comes_before_a_cut_in_a_gzip_file_is_read(tmp_path: Path) -> None:
    whole = gzip.compress(("user_id,item_id,timestamp\n" + "".join(f"u{n},i,{n}\n" for n in range(9_999))).encode())
    table = only(put(tmp_path, "e.csv.gz", whole[:-2_000]), EVENTS)
    read = []
    with pytest.raises(DatasetCutOff, match="cut off or damaged"):
        read.extend(table.rows())
    rows = iter(table.rows())
    first = [next(rows) for _ in range(100)]
    assert first[99].values == {"user_id": "u99", "item_id": "i", "timestamp": "99"}


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"PK\x03\x04more", "a zip archive; unpack it"),
        (b"\x28\xb5\x2f\xfdmore", "packed with zstd; unpack it"),
        (b"BZh9more", "packed with bzip2"),
    ],
)
def test_other_packings_are_refused_with_what_to_do(tmp_path: Path, start: bytes, said: str) -> None:
    assert said in refusal(put(tmp_path, "e.csv", start))


@pytest.mark.parametrize("name", ["e.csv", "e.jsonl", "u.data", "x.inter", "e.parquet"])
def test_an_empty_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    assert f"{name} is empty" in refusal(put(tmp_path, name, b""))


def test_a_folder_without_anything_known_says_what_is_there(tmp_path: Path) -> None:
    put(tmp_path, "notes.txt", "x")
    assert "has no events that are recognised (found: notes.txt)" in refusal(tmp_path)


def test_a_folder_of_parts_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    put(tmp_path, "part-1.csv", CSV)
    put(tmp_path, "part-0.csv", CSV)
    tables = open_tables(tmp_path, None, EVENTS, Options())
    assert [table.path.name for table in tables] == ["part-0.csv", "part-1.csv"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", CSV, Format.CSV),
        ("a.txt", CSV.replace(",", "\t"), Format.CSV),
        ("a.json", '{"item_id": "a"}\n', Format.JSONL),
        ("a.ndjson", "no\n", Format.JSONL),
        ("a.jsonl", '{"parent_asin": "a"}\n', Format.AMAZON_2023),
        ("ratings.csv", "userId,movieId,rating,timestamp\n", Format.MOVIELENS),
        ("ratings.dat", "1::1::5::9\n", Format.MOVIELENS),
        ("beauty.item", "item_id:token\n", Format.RECBOLE),
    ],
)
def test_the_format_is_guessed(tmp_path: Path, name: str, content: str, expected: Mapping[str, str]) -> None:
    assert guess(put(tmp_path, name, content)) is expected
    assert guess(put(tmp_path, f"{name}.gz", gzip.compress(content.encode()))) is expected


def test_parquet_columns_are_mapped_too(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    path = tmp_path / "e.parquet"
    polars.DataFrame({"who": ["u"], "sku": [1]}).write_parquet(path)
    assert values(path, mapping={"user_id": "who", "item_id": "sku"}) == [{"user_id": "u", "item_id": 1}]


def test_opening_a_folder_as_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is a folder"):
        open_table(tmp_path, Format.CSV)


def test_an_option_that_a_format_has_no_use_for_is_refused(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    lines = put(tmp_path, "events.jsonl", b'{"user_id": "u", "item_id": "i", "timestamp": 1}\n')
    assert "--delimiter is for csv" in refusal(lines, delimiter=";")
    columns = tmp_path / "events.parquet"
    polars.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [1]}).write_parquet(columns)
    assert "--encoding is for text" in refusal(columns, encoding="latin-1")
