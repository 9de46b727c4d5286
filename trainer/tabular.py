"""CSV, gzipped CSV and Parquet files as one stream of rows that know their line."""

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from service.errors import DatasetError

_GZIP_MAGIC = b"\x1f\x8b"
_PARQUET_CHUNK = 50_000  # rows held in memory at once
_LONGEST_FIELD = 10_000_000  # characters; the csv module's own limit of 131,072 is less than some product texts


class Format(StrEnum):
    CSV = "csv"
    """Comma-separated UTF-8 with a header line; gzip is recognised by its first bytes."""
    PARQUET = "parquet"
    """Needs the extra `parquet`."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record. `line` counts from 1: the (last) line of a CSV record, header included, or the row of a Parquet file.

    problem: why the record has no usable values, None when it has.
    """

    line: int
    values: dict[str, Any]
    problem: str | None = None


class Table:
    """A file of records, read as a stream.

    columns: their names, in order. size and done: how much there is and how much has been read, in one unit.
    """

    def __init__(self, path: Path, format: Format) -> None:
        """Reads the header. Raises DatasetError when the file is missing, empty or not of this format."""
        self.path, self.format = path, format
        self.done = 0
        if not path.is_file():
            raise DatasetError(f"{path} is not there or is no file; give the path of a {format} file")
        with _explained(path):
            if path.stat().st_size == 0:
                raise DatasetError(f"{path} is empty; write it again")
            if format is Format.CSV:
                self.size = path.stat().st_size
                self.columns = self._csv_header()
            else:
                self.columns, self.size = self._parquet_header()
        repeated = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if repeated:
            raise DatasetError(f"{path} has the column {repeated[0]!r} more than once; rename all but one")

    @property
    def unit(self) -> str:
        """What Row.line counts."""
        return "line" if self.format is Format.CSV else "row"

    def require(self, *names: str) -> None:
        """Raises DatasetError naming the columns that are missing."""
        missing = [name for name in names if name not in self.columns]
        if missing:
            found = ", ".join(self.columns)
            hint = "; it is tab-separated, commas are needed" if "\t" in found else ""
            wanted = f"column{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
            raise DatasetError(
                f"{self.path} has no {wanted} (found: {found[:300]}){hint}; rename or add what is missing"
            )

    def rows(self) -> Iterator[Row]:
        """The records in order. Raises DatasetError with the line at which the file cannot be read on."""
        with _explained(self.path):
            yield from self._csv_rows() if self.format is Format.CSV else self._parquet_rows()

    def _csv_header(self) -> list[str]:
        with self._opened() as (file, _):
            header = next(self._records(file))[1]
        return [name.strip() for name in header]

    def _csv_rows(self) -> Iterator[Row]:
        with self._opened() as (file, raw):
            records = self._records(file)
            next(records)
            for line, fields in records:
                self.done = raw.tell()
                if not fields:  # a blank line
                    continue
                if len(fields) == len(self.columns):
                    yield Row(line, dict(zip(self.columns, fields, strict=True)))
                else:
                    why = f"{len(fields)} fields where the header has {len(self.columns)}; quote those that hold commas"
                    yield Row(line, {}, why)
        self.done = self.size

    @contextmanager
    def _opened(self) -> Iterator[tuple[Iterable[bytes], IO[bytes]]]:
        """The file's plain bytes, and the file below them, whose position says how far the reading has come."""
        with self.path.open("rb") as raw:
            zipped = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            if not zipped:
                yield raw, raw
                return
            with gzip.open(raw) as unzipped:
                yield unzipped, raw

    def _records(self, file: Iterable[bytes]) -> Iterator[tuple[int, list[str]]]:
        csv.field_size_limit(_LONGEST_FIELD)
        reader = csv.reader(self._lines(file), strict=True)
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DatasetError(f"{self.path}, line {reader.line_num}: no valid CSV ({error})") from error
            yield reader.line_num, fields

    def _lines(self, file: Iterable[bytes]) -> Iterator[str]:
        number = 0
        try:
            for number, line in enumerate(file, 1):
                # Line by line, so that a byte that is no UTF-8 has a line number.
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DatasetError(f"{self.path}, line {number}: not UTF-8 ({error.reason}); save it as UTF-8") from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            why = "the gzip file is cut off or damaged"
            raise DatasetError(
                f"{self.path}, after line {number}: {why} ({error}); copy or download it again"
            ) from error
        if number == 0:
            raise DatasetError(f"{self.path} is empty; write it again")

    def _parquet_header(self) -> tuple[list[str], int]:
        polars = import_polars(self.path)
        lazy = polars.scan_parquet(self.path, glob=False)
        return lazy.collect_schema().names(), lazy.select(polars.len()).collect().item()

    def _parquet_rows(self) -> Iterator[Row]:
        polars = import_polars(self.path)
        lazy = polars.scan_parquet(self.path, glob=False)
        for start in range(0, self.size, _PARQUET_CHUNK):
            for line, values in enumerate(lazy.slice(start, _PARQUET_CHUNK).collect().iter_rows(named=True), start + 1):
                self.done = line
                yield Row(line, values)


def import_polars(path: Path) -> Any:
    """The polars module. Raises DatasetError saying how to install it."""
    try:
        import polars  # an extra: CSV works without it
    except ModuleNotFoundError as error:
        raise DatasetError(
            f"{path} is Parquet, which needs another package: pip install 'adaptide[parquet]', or give CSV"
        ) from error
    return polars


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "polars":
            raise
        raise DatasetError(f"{path} is no readable Parquet file: {str(error).splitlines()[0][:200]}") from error
