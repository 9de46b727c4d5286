"""Tables of the store as Parquet files, read page by page and written as a stream: wholly there, or not there."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa

from service.errors import AdaptideError, InvalidRequest
from service.events import repository as event_rows
from service.events.tables import events
from service.kit.db import Database
from service.kit.files import new_file, unwritten
from service.recommend import repository as recommendation_rows
from service.recommend.tables import recommendations
from trainer.formats.parquet import import_polars

PAGE = 10_000
"""Rows of a transaction, and held in memory at once (a few pages, since writing lags behind)."""

Page = Sequence[Mapping[str, Any]]
OnPage = Callable[[int], None]


def export_events(
    database: Database, path: Path, *, since: datetime | None, until: datetime | None, on_page: OnPage
) -> int:
    """Every event that occurred within [since, until), in the order of arrival; returns how many.

    Columns are the table's; `properties` is JSON text. `adaptide import events` takes the file. Each page is a
    transaction of its own: what is erased meanwhile may be in it or not. Raises InvalidRequest when `path` exists or
    cannot be written, DatasetError without Polars, StoreUnavailable; there is no file then.
    """

    def pages() -> Iterator[Page]:
        last = 0
        while page := _read(database, lambda c: event_rows.page_after(c, last, PAGE, since, until)):  # noqa: B023
            yield page
            last = page[-1]["seq"]

    return _write(path, events, {"properties": None}, pages(), on_page)


def export_recommendations(
    database: Database, path: Path, *, since: datetime | None, until: datetime | None, on_page: OnPage
) -> int:
    """Every recommendation made within [since, until), about in the order of time; returns how many.

    Columns are the table's: `history` a list of item ids, `items` a list of structs of item_id and score in rank order,
    other JSON as text. Otherwise as export_events.
    """

    def pages() -> Iterator[Page]:
        last = ""
        while page := _read(database, lambda c: recommendation_rows.page_after(c, last, PAGE, since, until)):  # noqa: B023
            yield page
            last = page[-1]["recommendation_id"]

    return _write(path, recommendations, {"history": list, "items": _scored}, pages(), on_page)


def _read(database: Database, query: Callable[[sa.Connection], Page]) -> Page:
    with database.read(patient=True) as connection:
        return query(connection)


def _scored(items: list[list[Any]]) -> list[dict[str, Any]]:
    return [{"item_id": item_id, "score": float(score)} for item_id, score in items]


def _write(
    path: Path,
    table: sa.Table,
    shapes: Mapping[str, Callable[[Any], Any] | None],
    pages: Iterator[Page],
    on_page: OnPage,
) -> int:
    """shapes: JSON columns and what turns their values into lists; None, and columns that are not named: text."""
    polars = import_polars(path)
    from polars.io.plugins import register_io_source

    schema = {column.name: _type(polars, column, shapes) for column in table.columns}
    written = 0
    failed: list[AdaptideError] = []

    def source(*_: Any) -> Iterator[Any]:
        nonlocal written
        try:
            for page in pages:
                columns = {
                    name: [_value(row[name], kind, shapes.get(name)) for row in page] for name, kind in schema.items()
                }
                yield polars.DataFrame(columns, schema=schema)
                written += len(page)
                on_page(written)
        except AdaptideError as error:  # Polars would say it in its own words
            failed.append(error)
            raise

    try:
        with new_file(path) as file:
            try:
                register_io_source(source, schema=schema).sink_parquet(file, maintain_order=True)
            except polars.exceptions.PolarsError as error:
                if failed:
                    raise failed[0] from error
                raise _of_the_system(error) from error
    except OSError as error:
        raise InvalidRequest(unwritten(path, error)) from error
    return written


def _of_the_system(error: Exception) -> OSError:
    """What Polars could not do; the system's number for it is in its words."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = int(found[1]) if found else 0
    return OSError(number, os.strerror(number) if number else str(error).partition("\n")[0][:200])


def _type(polars: Any, column: sa.Column[Any], shapes: Mapping[str, object]) -> Any:
    kind = column.type
    if shapes.get(column.name) is list:
        return polars.List(polars.String)
    if shapes.get(column.name) is not None:
        return polars.List(polars.Struct({"item_id": polars.String, "score": polars.Float64}))
    if isinstance(kind, sa.JSON):
        return polars.String
    python = kind.python_type if not isinstance(kind, sa.types.TypeDecorator) else kind.impl_instance.python_type
    types = {
        bool: polars.Boolean,
        int: polars.Int64,
        float: polars.Float64,
        datetime: polars.Datetime("us", "UTC"),
        bytes: polars.Binary,
    }
    return types.get(python, polars.String)


def _value(value: Any, kind: Any, shape: Callable[[Any], Any] | None) -> Any:
    if value is None:
        return None
    if shape is not None:
        return shape(value)
    return orjson.dumps(value).decode() if isinstance(value, dict | list) else value
