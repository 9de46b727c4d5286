"""RecBole's atomic files: .inter and .item, tab-separated, with a type in each column's name (`user_id:token`)."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from service.errors import DatasetError
from trainer.formats.delimited import Delimited
from trainer.formats.rows import Shaped, Table

_TYPES = frozenset({"token", "token_seq", "float", "float_seq"})
_TITLES = ("title", "movie_title", "item_name", "name", "product_name")
_CATEGORIES = ("categories", "category", "genre", "genres", "class", "cate")
_BRANDS = ("brand", "store", "artist", "publisher")
_DESCRIPTIONS = ("description", "abstract", "text")
_VALUES = ("rating", "value", "score")
_QUOTED = re.compile(r"""'([^']*)'|"([^"]*)\"""")


def events(path: Path, mapping: Mapping[str, str], encoding: str) -> Table:
    source, _ = _source(path, mapping, encoding)
    source.require("user_id", "item_id", "timestamp")
    value = _first(_VALUES, source)
    used = ("user_id", "item_id", "timestamp", *([value] if value else []))
    columns = ("user_id", "item_id", "timestamp", *(["value"] if value else []))

    def event(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: values[of] for name, of in zip(columns, used, strict=True)}

    return Shaped(source, columns, used, event)


def items(path: Path, mapping: Mapping[str, str], encoding: str) -> Table:
    source, types = _source(path, mapping, encoding)
    title = _first(_TITLES, source)
    if title is None:
        source.require("item_id", "title")
    source.require("item_id")
    found = {
        "title": title,
        "categories": _first(_CATEGORIES, source),
        "brand": _first(_BRANDS, source),
        "description": _first(_DESCRIPTIONS, source),
        "year": "release_year" if "release_year" in source.columns else None,
    }
    names = {name: column for name, column in found.items() if column is not None}
    sequence = types.get(names.get("categories", "")) == "token_seq"
    columns = ("item_id", *(name for name in names if name != "year"))
    shape: Callable[[Mapping[str, Any]], dict[str, Any]] = partial(_item, names, sequence)
    return Shaped(source, columns, ("item_id", *names.values()), shape)


def _source(path: Path, mapping: Mapping[str, str], encoding: str) -> tuple[Table, dict[str, str]]:
    typed = Delimited(path, delimiter="\t", quoted=False, encoding=encoding).columns
    types = {name: kind for name, _, kind in (column.rpartition(":") for column in typed)}
    wrong = [column for column in typed if column.rpartition(":")[2] not in _TYPES or ":" not in column]
    if wrong:
        raise DatasetError(
            f"{path} is no atomic file of RecBole: the column {wrong[0][:80]!r} has no type; write it as "
            f"{wrong[0][:40]}:token (or :float, :token_seq), or import the file with --format csv"
        )
    full = {name: column for name, column in zip(types, typed, strict=True)}
    plain = {name: column for name, column in full.items() if name not in mapping}
    renames = plain | {name: full.get(column, column) for name, column in mapping.items()}
    taken = set(mapping.values())
    renames = {name: column for name, column in renames.items() if name in mapping or name not in taken}
    return Delimited(path, delimiter="\t", quoted=False, mapping=renames, encoding=encoding), types


def _first(names: tuple[str, ...], source: Table) -> str | None:
    return next((name for name in names if name in source.columns), None)


def _item(names: Mapping[str, str], sequence: bool, values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {name: values[column] for name, column in names.items()}
    found["item_id"] = values["item_id"]
    if "categories" in found:
        found["categories"] = _categories(found["categories"], sequence)
    year = found.pop("year", "")
    if year.isdigit() and found["title"]:
        found["title"] = f"{found['title']} ({year})"
    return found


def _categories(text: str, sequence: bool) -> list[str]:
    """A sequence is separated by spaces, or quoted as RecBole's conversions of Amazon write it: 'Video Games', 'PC'."""
    quoted = [one or other for one, other in _QUOTED.findall(text)]
    if quoted:
        return quoted
    return text.split() if sequence else [text] if text else []
