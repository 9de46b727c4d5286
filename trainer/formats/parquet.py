"""Parquet, with Polars (the extra `parquet`)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from service.errors import DatasetError
from trainer.formats.rows import Row, Table, explained, renamed

_CHUNK = 20_000  # rows held in memory at once


class Parquet(Table):
    """Rows of a Parquet file, in its order."""

    unit = "row"

    def __init__(self, path: Path, *, mapping: Mapping[str, str] | None = None) -> None:
        super().__init__(path)
        polars = import_polars(path)
        with explained(path):
            lazy = polars.scan_parquet(path, glob=False)
            self._names = lazy.collect_schema().names()
            self.size = lazy.select(polars.len()).collect().item()
        self.columns = renamed(path, self._names, mapping or {})

    def rows(self) -> Iterator[Row]:
        polars = import_polars(self.path)
        with explained(self.path):
            lazy = polars.scan_parquet(self.path, glob=False)
            for start in range(0, self.size, _CHUNK):
                chunk = lazy.slice(start, _CHUNK).collect()
                for line, values in enumerate(chunk.iter_rows(), start + 1):
                    self.done = line
                    yield Row(line, dict(zip(self.columns, values, strict=True)))


def import_polars(path: Path) -> Any:
    """The polars module. Raises DatasetError saying how to install it."""
    try:
        import polars  # an extra: text files work without it
    except ModuleNotFoundError as error:
        raise DatasetError(
            f"{path} is Parquet, which needs another package: pip install 'adaptide[parquet]', or give CSV"
        ) from error
    return polars
