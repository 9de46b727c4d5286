"""MovieLens (GroupLens): 100k (u.data, u.item), 1M and 10M (.dat), and from 20M on and `latest` (CSV).

An item is a film, its categories are its genres. The older files hold Latin-1, the newer ones UTF-8.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.errors import DatasetError
from trainer.formats.delimited import Delimited
from trainer.formats.rows import Shaped, Table

RATING, TAG = "rating", "tag"
_EVENT_COLUMNS = ("user_id", "item_id", "timestamp", "value")
_RATINGS = ("userId", "movieId", "rating", "timestamp")
# In the order of u.genre.
_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_FILM_100K = ("movieId", "title", "released", "released on video", "address", *_GENRES)
_NO_GENRES = "(no genres listed)"


def events(path: Path, mapping: Mapping[str, str], encoding: str) -> Table:
    """Ratings; of tags.csv, the tags as events of type `tag`."""
    source = _source(path, mapping, encoding, _RATINGS, (*_RATINGS[:2], "rating", "timestamp"))
    if "tag" in source.columns and "rating" not in source.columns:
        source.require("userId", "movieId", "tag", "timestamp")
        return Shaped(source, (*_EVENT_COLUMNS[:3], "properties"), (*_RATINGS, "tag"), _tag, TAG)
    source.require(*_RATINGS)
    return Shaped(source, _EVENT_COLUMNS, _RATINGS, _rating, RATING)


def items(path: Path, mapping: Mapping[str, str], encoding: str) -> Table:
    if path.name.startswith("u.item"):
        source: Table = _plain(path, "|", _FILM_100K, mapping, encoding)
        return Shaped(source, ("item_id", "title", "categories"), ("movieId", "title", *_GENRES), _film_100k)
    source = _source(path, mapping, encoding, ("movieId", "title", "genres"), ())
    source.require("movieId", "title")
    return Shaped(source, ("item_id", "title", "categories"), ("movieId", "title", "genres"), _film)


def _source(
    path: Path, mapping: Mapping[str, str], encoding: str, dat_columns: tuple[str, ...], data_columns: tuple[str, ...]
) -> Table:
    name = path.name.removesuffix(".gz")
    if name.endswith(".dat"):
        if name.startswith("tags"):
            dat_columns = ("userId", "movieId", "tag", "timestamp")
        return _plain(path, "::", dat_columns, mapping, encoding)
    if name.startswith(("u.", "u1.", "u2.", "u3.", "u4.", "u5.", "ua.", "ub.")):
        if not data_columns:
            raise DatasetError(f"{path} holds no films; MovieLens 100k has them in u.item")
        return _plain(path, "\t", data_columns, mapping, encoding)
    return Delimited(path, mapping=mapping, encoding=encoding)


def _plain(path: Path, delimiter: str, columns: tuple[str, ...], mapping: Mapping[str, str], encoding: str) -> Table:
    """A file of the older data sets. What is not UTF-8 is Latin-1 there, unless another encoding is given."""
    return Delimited(
        path,
        delimiter=delimiter,
        quoted=False,
        columns=columns,
        mapping=mapping,
        encoding=encoding,
        fallback="latin-1",
    )


def _rating(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "user_id": values["userId"],
        "item_id": values["movieId"],
        "timestamp": values["timestamp"],
        "value": values["rating"],
    }


def _tag(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "user_id": values["userId"],
        "item_id": values["movieId"],
        "timestamp": values["timestamp"],
        "properties": {"tag": values["tag"][:500]},
    }


def _film(values: Mapping[str, Any]) -> dict[str, Any]:
    genres = values.get("genres") or ""
    return {
        "item_id": values["movieId"],
        "title": values["title"],
        "categories": [] if genres == _NO_GENRES else [genre for genre in genres.split("|") if genre],
    }


def _film_100k(values: Mapping[str, Any]) -> dict[str, Any]:
    genres = [genre for genre in _GENRES if values[genre] == "1" and genre != "unknown"]
    return {"item_id": values["movieId"], "title": values["title"], "categories": genres}
