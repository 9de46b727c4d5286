"""Lines of a text file, plain or gzipped, in any encoding; no more than one long line is ever in memory."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from service.errors import DatasetCutOff, DatasetError

LONGEST_RECORD = 16 * 2**20
"""Bytes of plain text: a gzip file of a few kilobytes must not fill the memory with one line."""
_CHUNK = 256 * 2**10
_GZIP_MAGIC = b"\x1f\x8b"
_OTHER_PACKINGS = {
    b"PK\x03\x04": "a zip archive; unpack it and give the file inside",
    b"\x28\xb5\x2f\xfd": "packed with zstd; unpack it (zstd -d) or pack it with gzip",
    b"BZh": "packed with bzip2; unpack it (bunzip2) or pack it with gzip",
    b"\xfd7zXZ": "packed with xz; unpack it (unxz) or pack it with gzip",
    b"7z\xbc\xaf": "a 7-Zip archive; unpack it and give the file inside",
}
NOT_UTF8 = "not UTF-8; save the file as UTF-8 (`adaptide import` takes others: --encoding latin-1, utf-16, ..)"


_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)


class LongRecord(Exception):
    """A record is longer than LONGEST_RECORD; it was skipped up to the end of its line."""


class Lines:
    """An iterator over the lines of a file, each with its end.

    number: of the last line taken, from 1. taken: bytes of plain text so far. bad: numbers of lines that are no text in
    the file's encoding; what was no text in them is there as lone surrogates.
    """

    def __init__(self, path: Path, file: IO[bytes], raw: IO[bytes], fallback: str | None = None) -> None:
        """file: plain UTF-8. raw: the file below it. fallback: the encoding of lines that are not UTF-8."""
        self.path, self._file, self._raw, self._fallback = path, file, raw, fallback
        self.number = self.taken = self._filled = 0
        self._record_start = 0
        self.bad: set[int] = set()
        self._ready: Iterator[str | None] = iter(())
        self._tail: list[bytes] = []
        self._tail_length = 0
        self._skipping = self._ended = False

    @property
    def position(self) -> int:
        """Bytes of the file (packed, if it is) that have been read."""
        return self._raw.tell()

    def begin_record(self) -> None:
        """The next line is the first of a record."""
        self._record_start = self.taken

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> str:
        """Raises LongRecord after a line that makes its record too long, DatasetCutOff, StopIteration."""
        line = next(self._ready, "")
        while line == "":
            self._fill()
            line = next(self._ready, "")
        self.number += 1
        if line is None:
            raise LongRecord
        self.taken += len(line)
        if self.taken - self._record_start > LONGEST_RECORD:
            raise LongRecord
        return line

    def _fill(self) -> None:
        """Take the next piece of the file and make its whole lines ready."""
        if self._ended:
            raise StopIteration
        try:
            piece = self._file.read1(_CHUNK)  # type: ignore[attr-defined]  # a buffered reader
        except _DAMAGED as error:
            raise _cut_off(self.path, self.number, error) from error
        except UnicodeError as error:  # of another encoding than UTF-8
            why = f"no text in the given encoding ({error}); give another --encoding"
            raise DatasetError(f"{self.path}, after line {self.number}: {why}") from error
        self._ended = not piece
        end = len(piece) if self._ended else piece.rfind(b"\n") + 1
        lines: list[str | None] = []
        if end or self._ended:
            whole = b"".join([*self._tail, piece[:end]])
            self._tail, self._tail_length = [], 0
            if self._skipping:
                lines.append(None)
                self._skipping = False
                whole = whole[whole.find(b"\n") + 1 :] if b"\n" in whole else b""
            lines += self._decoded(whole, self.number + len(lines))
        if end < len(piece) and not self._skipping:
            self._tail.append(piece[end:])
            self._tail_length += len(piece) - end
            if self._tail_length > LONGEST_RECORD:
                self._tail, self._tail_length, self._skipping = [], 0, True
        self._ready = iter(lines)

    def _decoded(self, whole: bytes, number: int) -> list[str]:
        try:
            return [line.decode() for line in whole.splitlines(True)]
        except UnicodeDecodeError:
            return [self._decoded_line(line, at) for at, line in enumerate(whole.splitlines(True), number + 1)]

    def _decoded_line(self, line: bytes, number: int) -> str:
        try:
            return line.decode()
        except UnicodeDecodeError:
            if self._fallback is not None:
                return line.decode(self._fallback)
            self.bad.add(number)
            return line.decode(errors="surrogateescape")


@contextmanager
def opened(path: Path, encoding: str = "utf-8", fallback: str | None = None) -> Iterator[Lines]:
    """The lines of a file; gzip is recognised by its first bytes, a byte order mark is left out."""
    with path.open("rb") as raw:
        refuse_packed(path, raw)
        zipped = raw.peek(2)[:2] == _GZIP_MAGIC
        file: Any = gzip.open(raw) if zipped else raw
        if codecs.lookup(encoding).name not in ("utf-8", "utf-8-sig"):
            file = io.BufferedReader(_Recoded(file, encoding), _CHUNK)
        else:
            _skip_mark(path, file)
        yield Lines(path, file, raw, fallback)


def refuse_packed(path: Path, raw: io.BufferedReader) -> None:
    """Raises DatasetError for an archive or a packing that is not read."""
    start = raw.peek(8)
    for magic, what in _OTHER_PACKINGS.items():
        if start.startswith(magic):
            raise DatasetError(f"{path} is {what}")


def _skip_mark(path: Path, file: Any) -> None:
    try:
        start = file.peek(3)[:3]
    except _DAMAGED as error:
        raise _cut_off(path, 0, error) from error
    if start == codecs.BOM_UTF8:
        file.read(3)
    elif start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise DatasetError(f"{path}, line 1: {NOT_UTF8}; it begins like UTF-16")


def _cut_off(path: Path, line: int, error: BaseException) -> DatasetCutOff:
    why = f"the gzip file is cut off or damaged ({error}); copy or download it again"
    return DatasetCutOff(f"{path}, after line {line}: {why}")


class _Recoded(io.RawIOBase):
    """A file in another encoding, as UTF-8."""

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._waiting = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._waiting and not self._ended:
            piece = self._file.read1(_CHUNK)  # type: ignore[attr-defined]  # a buffered reader
            self._ended = not piece
            self._waiting = self._decoder.decode(piece, self._ended).encode()
        taken = self._waiting[: len(buffer)]
        self._waiting = self._waiting[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)
