"""A row, and a table: what every reader of a file yields."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from service.errors import DatasetError

MOST_COLUMNS = 1_000


@dataclass(frozen=True, slots=True)
class Row:
    """One record. `line` counts from 1: the (last) line of a text file's record, header included, or the row of a
    Parquet file.

    problem: why the record has no usable values, None when it has.
    """

    line: int
    values: dict[str, Any]
    problem: str | None = None


class Table(ABC):
    """A file of records, read as a stream.

    columns: their names, in order. unused: columns of the file that no row has. open: rows may have names that are not
    in `columns`, which are those of the first records. head: lines up to the header's end, 0 without a header. size and
    done: how much there is and how much has been read, in one unit. unpacked: characters of text that this reading has
    taken so far, a gzip file's after unpacking.
    """

    unit = "line"
    """What Row.line counts."""
    open = False
    event_type: str | None = None
    """Of events whose row names none, where the format knows better than `interaction`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []
        self.unused: list[str] = []
        self.head = self.size = self.done = self.unpacked = 0

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """The records in order, from the first. A record that cannot be read has a problem, and the next one follows.

        Raises DatasetError where the file cannot be read on, DatasetCutOff where it ends too early.
        """

    def require(self, *names: str) -> None:
        """Raises DatasetError naming the columns that are missing, what is there instead, and how to map it."""
        missing = [name for name in names if name not in self.columns]
        if not missing:
            return
        found = ", ".join(self.columns)
        hint = "; it is tab-separated, commas are needed" if "\t" in found else ""
        wanted = f"column{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
        mapped = " ".join(f"--map {name}={self._alike(name) or 'COLUMN'}" for name in missing)
        raise DatasetError(
            f"{self.path} has no {wanted} (found: {found[:300]}){hint}; rename or add what is missing "
            f"(`adaptide import` can map it: {mapped})"
        )

    def _alike(self, name: str) -> str | None:
        """The column that is probably meant."""
        folded = {column.lower(): column for column in self.columns}
        for known in _SYNONYMS.get(name, ()):
            if known in folded:
                return folded[known]
        near = get_close_matches(name, folded, 1)
        return folded[near[0]] if near else None


_SYNONYMS = {
    "item_id": ("item", "itemid", "product_id", "productid", "sku", "parent_asin", "asin", "movieid", "article_id"),
    "user_id": ("user", "userid", "customer_id", "customerid", "visitor_id", "visitorid", "reviewerid", "uid"),
    "title": ("name", "item_name", "product_name", "product_title", "prod_name", "label"),
    "timestamp": ("time", "ts", "unixreviewtime", "date", "datetime", "created_at", "event_time", "t_dat"),
}


class Shaped(Table):
    """Another table's rows with the names that an import knows.

    shape: a record's values to those of a row; raises ValueError, KeyError or TypeError for one that has not what it
    needs. used: columns of the other table that it looks at.
    """

    def __init__(
        self,
        source: Table,
        columns: Sequence[str],
        used: Sequence[str],
        shape: Callable[[Mapping[str, Any]], dict[str, Any]],
        event_type: str | None = None,
    ) -> None:
        super().__init__(source.path)
        self._source, self._shape = source, shape
        self.columns, self.head, self.size = list(columns), source.head, source.size
        self.unused = [name for name in source.columns if name not in used]
        self.unit, self.event_type = source.unit, event_type

    def rows(self) -> Iterator[Row]:
        source, shape = self._source, self._shape
        for row in source.rows():
            self.done, self.unpacked = source.done, source.unpacked
            if row.problem is not None:
                yield row
                continue
            try:
                yield Row(row.line, shape(row.values))
            except KeyError as error:
                yield Row(row.line, {}, f"the record has no {error.args[0]}")
            except (TypeError, ValueError) as error:
                yield Row(row.line, {}, str(error))
        self.done = self.size


def renamed(path: Path, columns: Sequence[str], mapping: Mapping[str, str]) -> list[str]:
    """The columns under the names that `mapping` (name -> the file's column) gives them.

    A column that has a name which another was mapped to loses it. Raises DatasetError for a column that is not there or
    occurs twice.
    """
    if len(columns) > MOST_COLUMNS:
        raise DatasetError(f"{path} has {len(columns):,} columns; {MOST_COLUMNS:,} are read at most")
    lacking = [column for column in mapping.values() if column not in columns]
    if lacking:
        raise DatasetError(
            f"{path} has no column {lacking[0]!r} for --map (found: {', '.join(columns)[:300]}); write NAME=COLUMN "
            "with a column that is there"
        )
    names = {column: name for name, column in mapping.items()}
    found = [names.get(column, f"{column} (of the file)" if column in mapping else column) for column in columns]
    repeated = sorted(name for name, times in Counter(found).items() if times > 1)
    if repeated:
        raise DatasetError(f"{path} has the column {repeated[0]!r} more than once; rename all but one")
    return found


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns what the system or Polars says of a file into a DatasetError."""
    try:
        yield
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error
    except BaseException as error:  # polars' Rust panics are no Exception
        if type(error).__module__.partition(".")[0] not in ("polars", "pyo3_runtime"):
            raise
        raise DatasetError(f"{path} is no readable Parquet file: {str(error).partition(chr(10))[0][:200]}") from error
