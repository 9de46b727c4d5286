"""Data sets: items and interactions, from a folder of files or by name, checked before anything is trained on them."""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.errors import DatasetError
from service.kit.files import sha256_file
from trainer import movielens
from trainer.formats import Format, Row, Table, open_table

LATEST_TIMESTAMP = 253_402_300_799  # 9999-12-31T23:59:59Z; anything later is milliseconds
# The catalogue's own limits (service.catalog.schemas); longer text is cut, because it only describes an item.
TITLE_LENGTH, DESCRIPTION_LENGTH, BRAND_LENGTH, CATEGORY_LENGTH, CATEGORIES = 1_000, 20_000, 300, 200, 50
ID_LENGTH = 128
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class DatasetItem:
    """An item as `PUT /v1/items` takes it. An item without a title is called by its id."""

    item_id: str
    title: str
    description: str | None = None
    categories: tuple[str, ...] = ()
    brand: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Interactions:
    """Columns of equal length, by time, ties in the order of the file.

    timestamp: float64 [n], unix seconds, UTC.
    """

    user_id: tuple[str, ...]
    item_id: tuple[str, ...]
    timestamp: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.user_id)

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[str, str, float]]:
        """(user_id, item_id, timestamp) of those from `start` up to, not including, `stop`."""
        part = slice(start, stop)
        return zip(self.user_id[part], self.item_id[part], self.timestamp[part].tolist(), strict=True)


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """digest: hex SHA-256 of the files it came from. An interaction's item may be missing from `items`."""

    name: str
    digest: str
    items: tuple[DatasetItem, ...]
    interactions: Interactions


def load_dataset(name_or_folder: str, home: Path) -> Dataset:
    """`movielens-100k` (fetched once into home/datasets) or a folder with items.* and interactions.*.

    Files are .csv, .csv.gz or .parquet. items: item_id, title and, if there, brand, description and categories (a list,
    or text separated by `|` or ` > `). interactions: user_id, item_id, timestamp (unix seconds). Other columns are
    ignored, texts are cut to the catalogue's limits.
    Raises DatasetError naming file, column or line, and what to do.
    """
    if name_or_folder == movielens.NAME:
        source = movielens.load(home)
        items = tuple(DatasetItem(i, title, categories=genres) for i, title, genres in source.items)
        return Dataset(movielens.NAME, source.digest, items, _sorted(*source.ratings))
    folder = Path(name_or_folder).expanduser()
    if not folder.is_dir():
        raise DatasetError(
            f"{name_or_folder!r} is neither a folder nor a known data set; the known one is {movielens.NAME}"
        )
    return read_dataset(folder.resolve().name, _table(folder, "items"), _table(folder, "interactions"))


def read_dataset(name: str, items: Table, interactions: Table) -> Dataset:
    """Tables as load_dataset describes them. Raises DatasetError naming file, column or line."""
    items.require("item_id", "title")
    interactions.require("user_id", "item_id", "timestamp")
    hashes = "".join(sha256_file(table.path) for table in (items, interactions))
    digest = hashlib.sha256(hashes.encode()).hexdigest()
    return Dataset(name, digest, read_items(items), read_interactions(interactions))


def categories_of(value: object) -> tuple[str, ...]:
    """Categories from a list, a JSON list, or text separated by `|` or, failing that, ` > `; cleaned, each once."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                value = orjson.loads(value)
            except orjson.JSONDecodeError:
                value = [value]
        else:
            value = value.split("|") if "|" in value else value.split(" > ")
    if not isinstance(value, list | tuple):
        return ()
    cleaned = (clean(part, CATEGORY_LENGTH) for part in value if isinstance(part, str))
    return tuple(dict.fromkeys(part for part in cleaned if part))[:CATEGORIES]


def clean(value: object, length: int) -> str:
    """Text on one line, without control characters, cut to `length` characters; empty for nothing."""
    if value is None or value != value:  # NaN: pandas has no other word for nothing
        return ""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return " ".join(text.split())[:length].rstrip()


def _table(folder: Path, stem: str) -> Table:
    names = {f"{stem}.parquet": Format.PARQUET, f"{stem}.csv": Format.CSV, f"{stem}.csv.gz": Format.CSV}
    found = [name for name in names if (folder / name).is_file()]
    if not found:
        raise DatasetError(f"{folder} has no {stem} file; put {' or '.join(names)} there")
    if len(found) > 1:
        raise DatasetError(f"{folder} has {' and '.join(found)}; keep the one that is meant")
    return open_table(folder / found[0], names[found[0]])


def item_of(values: Mapping[str, Any]) -> DatasetItem:
    """An item from a row with item_id, title and whatever else there is. Raises ValueError saying what is wrong."""
    item_id = identifier_of(values, "item_id")
    return DatasetItem(
        item_id,
        clean(values.get("title"), TITLE_LENGTH) or item_id,
        clean(values.get("description"), DESCRIPTION_LENGTH) or None,
        categories_of(values.get("categories")),
        clean(values.get("brand"), BRAND_LENGTH) or None,
    )


def identifier_of(values: Mapping[str, Any], column: str) -> str:
    """A user's or an item's id; whole numbers become text. Raises ValueError saying what is wrong."""
    value = values.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        what = "empty" if value in (None, "") else f"a {type(value).__name__}"
        raise ValueError(f"{column} is {what}; text or a whole number is needed")
    if len(value) > ID_LENGTH:
        raise ValueError(f"{column} has {len(value)} characters; at most {ID_LENGTH} are allowed")
    if _CONTROL.search(value):
        raise ValueError(f"{column} {value!r} has a control character; remove it")
    return value


def number_of(value: Any) -> float:
    """A number or its text; NaN for anything else."""
    try:
        # float() also reads 1_000 and True, which nobody writes on purpose.
        return math.nan if isinstance(value, bool) or (isinstance(value, str) and "_" in value) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def timestamp_of(value: Any) -> float:
    """Unix seconds from a number or its text. Raises ValueError saying what is wrong."""
    number = number_of(value)
    if not 0 <= number <= LATEST_TIMESTAMP:
        hint = "; divide milliseconds by 1000" if number > LATEST_TIMESTAMP else ""
        raise ValueError(f"timestamp {str(value)[:40]!r} is not unix seconds between 1970 and 9999{hint}")
    return number


def read_items(table: Table) -> tuple[DatasetItem, ...]:
    """Every item, in the order of the file. Raises DatasetError naming the line of the first that cannot be used."""
    items: dict[str, DatasetItem] = {}
    lines: dict[str, int] = {}
    for row in table.rows():
        with placed(table, row):
            item = item_of(row.values)
            if item.item_id in lines:
                raise ValueError(
                    f"item_id {item.item_id!r} occurs in {table.unit} {lines[item.item_id]} already; keep one of them"
                )
        lines[item.item_id] = row.line
        items[item.item_id] = item
    if not items:
        raise DatasetError(f"{table.path} has a header but no items")
    return tuple(items.values())


def read_interactions(table: Table) -> Interactions:
    """Every interaction, by time. Raises DatasetError naming the line of the first that cannot be used."""
    users: list[str] = []
    items: list[str] = []
    times: list[float] = []
    shared: dict[str, str] = {}  # one string object for each id, however often it occurs
    for row in table.rows():
        with placed(table, row):
            user_id, item_id = identifier_of(row.values, "user_id"), identifier_of(row.values, "item_id")
            times.append(timestamp_of(row.values["timestamp"]))
        users.append(shared.setdefault(user_id, user_id))
        items.append(shared.setdefault(item_id, item_id))
    if not users:
        raise DatasetError(f"{table.path} has a header but no interactions")
    return _sorted(users, items, times)


def _sorted(users: list[str], items: list[str], times: list[float]) -> Interactions:
    timestamp = np.array(times, dtype=np.float64)
    order = np.argsort(timestamp, kind="stable")
    return Interactions(tuple(users[i] for i in order), tuple(items[i] for i in order), timestamp[order])


@contextmanager
def placed(table: Table, row: Row) -> Iterator[None]:
    """Turns what is wrong with a row into a DatasetError that says where it is."""
    try:
        if row.problem is not None:
            raise ValueError(row.problem)
        yield
    except ValueError as error:
        raise DatasetError(f"{table.path}, {table.unit} {row.line}: {error}") from error
