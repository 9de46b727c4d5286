"""JSON lines: one object a line."""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from service.errors import DatasetError
from trainer.formats.lines import LONGEST_RECORD, NOT_UTF8, Lines, LongRecord, opened
from trainer.formats.rows import Row, Table, explained, renamed

_SAMPLED = 100


class JsonLines(Table):
    """Objects line by line; `columns` are the names in the first hundred, and later ones may have more."""

    open = True

    def __init__(self, path: Path, *, mapping: Mapping[str, str] | None = None, encoding: str = "utf-8") -> None:
        """Raises DatasetError when none of the first hundred lines is an object."""
        super().__init__(path)
        self._encoding = encoding
        with explained(path):
            self.size = path.stat().st_size
            with opened(path, encoding) as lines:
                sample = list(islice(self._records(lines), _SAMPLED))
        if not sample:
            raise DatasetError(f"{path} is empty; write it again")
        found = [row.values for row in sample if row.problem is None]
        if not found:
            raise DatasetError(f"{path}, line {sample[0].line}: {sample[0].problem}")
        names = list(dict.fromkeys(name for values in found for name in values))
        self.columns = renamed(path, names, mapping or {})
        self._new_names = dict(zip(names, self.columns, strict=True)) if mapping else {}

    def rows(self) -> Iterator[Row]:
        new = self._new_names
        with explained(self.path), opened(self.path, self._encoding) as lines:
            filled = -1
            for row in self._records(lines):
                if lines.taken - filled > 65_536:
                    self.done, filled = lines.position, lines.taken
                self.unpacked = lines.taken
                if new and row.problem is None:
                    yield Row(row.line, {new.get(name, name): value for name, value in row.values.items()})
                else:
                    yield row
        self.done = self.size

    def _records(self, lines: Lines) -> Iterator[Row]:
        loads = orjson.loads
        while True:
            try:
                line = next(lines, None)
                lines.begin_record()
                if line is None:
                    return
                if line.isspace():
                    continue
                if lines.bad and lines.number in lines.bad:
                    lines.bad.discard(lines.number)
                    yield Row(lines.number, {}, NOT_UTF8)
                    continue
                values: Any = loads(line)
            except LongRecord:
                lines.begin_record()
                yield Row(
                    lines.number, {}, f"a line of more than {LONGEST_RECORD // 2**20} MiB; is a line's end missing?"
                )
            except orjson.JSONDecodeError as error:
                yield Row(lines.number, {}, f"no JSON ({error})")
            else:
                if isinstance(values, dict):
                    yield Row(lines.number, values)
                else:
                    yield Row(lines.number, {}, 'no JSON object; each line is one, such as {"item_id": "a"}')
