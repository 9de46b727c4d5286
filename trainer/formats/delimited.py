"""CSV and its kin: a record a line, fields between commas, tabs, bars or whatever the file has."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from service.errors import DatasetError
from trainer.formats.lines import LONGEST_RECORD, NOT_UTF8, Lines, LongRecord, opened
from trainer.formats.rows import Row, Table, explained, renamed

_LONGEST_FIELD = 10_000_000  # characters; the csv module's own limit of 131,072 is less than some product texts
_TOO_LONG = f"a record of more than {LONGEST_RECORD // 2**20} MiB; is a quote or a line's end missing?"
_Record = tuple[int, list[str], str | None]  # line, fields, problem


class Delimited(Table):
    """A text file of fields. A record that cannot be read is refused alone; the next line begins another."""

    def __init__(
        self,
        path: Path,
        *,
        delimiter: str = ",",
        quoted: bool = True,
        columns: Sequence[str] | None = None,
        mapping: Mapping[str, str] | None = None,
        encoding: str = "utf-8",
        fallback: str | None = None,
        loose: bool = False,
    ) -> None:
        """columns: of a file without a header line. quoted: CSV's quotes; otherwise a quote is a character like others.

        fallback: the encoding of lines that are not UTF-8. loose: a record may have more fields than there are columns.
        Raises DatasetError when there is no header or it cannot be used.
        """
        super().__init__(path)
        self._delimiter, self._quoted, self._encoding, self._fallback = delimiter, quoted, encoding, fallback
        self._headed, self._loose = columns is None, loose
        with explained(path):
            self.size = path.stat().st_size
            with opened(path, encoding, fallback) as lines:
                first = next(self._records(lines), None)
        if first is None:
            raise DatasetError(f"{path} is empty; write it again")
        line, fields, problem = first
        if self._headed:
            if problem is not None:
                raise DatasetError(f"{path}, line {line}: {problem}")
            self.head = line
            columns = [name.strip() for name in fields]
        self.columns = renamed(path, columns or (), mapping or {})

    def rows(self) -> Iterator[Row]:
        columns, wanted = self.columns, len(self.columns)
        with explained(self.path), opened(self.path, self._encoding, self._fallback) as lines:
            records = self._records(lines)
            if self._headed:
                next(records)
            self.done = self.unpacked = 0
            filled = -1
            for line, fields, problem in records:
                if lines.taken - filled > 65_536:
                    self.done, filled = lines.position, lines.taken
                self.unpacked = lines.taken
                if problem is not None:
                    yield Row(line, {}, problem)
                elif len(fields) == wanted or (self._loose and len(fields) > wanted):
                    yield Row(line, dict(zip(columns, fields, strict=False)))
                elif fields:  # not a blank line
                    why = f"{len(fields)} fields where the header has {wanted}; quote those that hold commas"
                    if not self._headed:
                        why = f"{len(fields)} fields where {wanted} are needed"
                    yield Row(line, {}, why)
        self.done = self.size

    def _records(self, lines: Lines) -> Iterator[_Record]:
        csv.field_size_limit(_LONGEST_FIELD)
        while True:
            reader: Iterator[list[str]] = (
                csv.reader(lines, delimiter=self._delimiter, strict=True) if self._quoted else self._split(lines)
            )
            try:
                for fields in reader:
                    lines.begin_record()
                    if lines.bad and min(lines.bad) <= lines.number:
                        lines.bad = {number for number in lines.bad if number > lines.number}
                        yield lines.number, [], NOT_UTF8
                    else:
                        yield lines.number, fields, None
                return
            except LongRecord:
                problem = _TOO_LONG
            except csv.Error as error:
                problem = f"no valid CSV ({error})"
            lines.begin_record()
            yield lines.number, [], problem

    def _split(self, lines: Lines) -> Iterator[list[str]]:
        delimiter = self._delimiter
        while (line := next(lines, None)) is not None:
            text = line.rstrip("\r\n")
            yield text.split(delimiter) if text else []
