"""Which format a file has, which files of a folder are meant, and the table that reads each."""

import gzip
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import orjson

from service.errors import DatasetError
from trainer.formats import amazon, movielens, recbole
from trainer.formats.delimited import Delimited
from trainer.formats.jsonl import JsonLines
from trainer.formats.lines import refuse_packed
from trainer.formats.parquet import Parquet
from trainer.formats.rows import Table, explained

ITEMS, EVENTS = "items", "events"


class Format(StrEnum):
    CSV = "csv"
    """Fields with a header line, separated by commas, tabs, semicolons or bars; gzip is recognised, as everywhere."""
    PARQUET = "parquet"
    """Needs the extra `parquet`."""
    JSONL = "jsonl"
    """A JSON object a line."""
    AMAZON_2023 = "amazon-2023"
    MOVIELENS = "movielens"
    RECBOLE = "recbole"


@dataclass(frozen=True, slots=True)
class Options:
    """How a file is to be read. mapping: a row's name -> the file's column. delimiter: of CSV, None to look."""

    mapping: Mapping[str, str] = field(default_factory=dict)
    encoding: str = "utf-8"
    delimiter: str | None = None


# Files of a folder, by what is wanted: those of the first line that has any.
_WANTED = {
    EVENTS: (
        *(("u.data",), ("ratings.dat",), ("ratings.csv", "ratings.csv.gz"), ("*.inter", "*.inter.gz")),
        ("interactions.*", "events.*"),
    ),
    ITEMS: (
        *(("u.item",), ("movies.dat",), ("movies.csv", "movies.csv.gz"), ("*.item", "*.item.gz")),
        *(("items.*",), ("meta_*.jsonl", "meta_*.jsonl.gz", "meta.jsonl", "meta.jsonl.gz")),
    ),
}
_PARTS = ("*.parquet", "*.jsonl.gz", "*.jsonl", "*.csv.gz", "*.csv")
_SECOND_HALF = {EVENTS: ("meta*", "items.*", "movies.*"), ITEMS: ("ratings.*", "tags.*", "links.*", "interactions.*")}


def open_table(path: Path, format: Format, kind: str = "", options: Options | None = None) -> Table:
    """The rows of a file. kind: ITEMS or EVENTS, which the formats of published data sets need to know.

    Raises DatasetError when the file is missing, empty or not of this format, or lacks a mapped column.
    """
    options = options or Options()
    if path.is_dir():
        raise DatasetError(f"{path} is a folder; give one of its files")
    if not path.is_file():
        raise DatasetError(f"{path} is not there or is no file; give the path of a {format} file")
    with explained(path):
        if path.stat().st_size == 0:
            raise DatasetError(f"{path} is empty; write it again")
    mapping, encoding = options.mapping, options.encoding
    if options.delimiter is not None and format is not Format.CSV:
        raise DatasetError(f"--delimiter is for csv; {path} is read as {format}, which has its own")
    if format is Format.PARQUET and encoding != Options().encoding:
        raise DatasetError(f"--encoding is for text; {path} is read as {format}, whose text is UTF-8")
    match format:
        case Format.PARQUET:
            return Parquet(path, mapping=mapping)
        case Format.JSONL:
            return JsonLines(path, mapping=mapping, encoding=encoding)
        case Format.AMAZON_2023:
            source: Table = (
                JsonLines(path, mapping=mapping, encoding=encoding)
                if _head(path).decode(encoding, "replace").lstrip("\ufeff \t\r\n")[:1] == "{"
                else Delimited(path, mapping=mapping, encoding=encoding)
            )
            return amazon.items(source) if kind == ITEMS else amazon.events(source)
        case Format.MOVIELENS:
            made = movielens.items if kind == ITEMS else movielens.events
            return made(path, mapping, encoding)
        case Format.RECBOLE:
            made = recbole.items if kind == ITEMS else recbole.events
            return made(path, mapping, encoding)
        case Format.CSV:
            return Delimited(path, delimiter=options.delimiter or ",", mapping=mapping, encoding=encoding)


def open_tables(path: Path, format: Format | None, kind: str, options: Options) -> list[Table]:
    """The tables that a file, or a folder of a data set, has on items or events. format: None to look."""
    files = _files_of(path, kind) if path.is_dir() else [path]
    tables = []
    for file in files:
        found = format or (guess(file) if file.is_file() and file.stat().st_size else Format.CSV)
        own = options
        if found is Format.CSV and options.delimiter is None:
            own = Options(options.mapping, options.encoding, _delimiter(file, options.encoding))
        tables.append(open_table(file, found, kind, own))
    return tables


def guess(path: Path) -> Format:
    """The format by name and content; CSV when nothing speaks for another. Raises DatasetError for an archive."""
    name = path.name.lower().removesuffix(".gz")
    with explained(path), path.open("rb") as raw:
        refuse_packed(path, raw)
    start = _head(path)
    if start[:4] == b"PAR1" or name.endswith((".parquet", ".pq")):
        return Format.PARQUET
    if name.endswith((".inter", ".item")) and name != "u.item":
        return Format.RECBOLE
    if name in ("u.data", "u.item") or name.endswith((".dat", ".base", ".test")):
        return Format.MOVIELENS
    first = start.lstrip(b"\xef\xbb\xbf \t\r\n").partition(b"\n")[0]
    if first[:1] == b"{" or name.endswith((".jsonl", ".ndjson")):
        try:
            keys = set(orjson.loads(first))
        except (orjson.JSONDecodeError, TypeError):
            return Format.JSONL
        return Format.AMAZON_2023 if "parent_asin" in keys else Format.JSONL
    header = {column.strip().strip('"') for column in first.decode("utf-8", "replace").split(",")}
    if "movieId" in header and header & {"userId", "genres"}:
        return Format.MOVIELENS
    if {"parent_asin", "rating", "user_id"} <= header:
        return Format.AMAZON_2023
    return Format.CSV


def _files_of(folder: Path, kind: str) -> list[Path]:
    for patterns in _WANTED[kind]:
        found = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
        if found:
            if len({path.name.partition(".")[0] for path in found}) < len(found):
                names = " and ".join(path.name for path in found)
                raise DatasetError(f"{folder} has {names}; give the file that is meant")
            return found
    for pattern in _PARTS:
        others = {path for other in _SECOND_HALF[kind] for path in folder.glob(other)}
        found = sorted(path for path in folder.glob(pattern) if path.is_file() and path not in others)
        if found:
            return found
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
    raise DatasetError(f"{folder} has no {kind} that are recognised (found: {there}); give one of its files")


def _delimiter(path: Path, encoding: str) -> str:
    """What separates the header's names: the first of comma, tab, semicolon and bar that occurs."""
    first = _head(path).decode(encoding, "replace").partition("\n")[0]
    return next((mark for mark in ",\t;|" if mark in first), ",")


def _head(path: Path, length: int = 65_536) -> bytes:
    """The first bytes, unpacked; fewer when they are damaged, which reading the file will say."""
    try:
        with path.open("rb") as raw:
            if raw.peek(2)[:2] != b"\x1f\x8b":
                return raw.read(length)
            with gzip.open(raw) as file:
                return file.read1(length)
    except (OSError, EOFError, zlib.error):
        return b""
