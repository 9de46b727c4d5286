"""An immutable sequence whose successor shares with it all that did not change."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Generic, TypeVar, overload

T = TypeVar("T")

CHUNK = 1024  # a change copies as many references, and one for each chunk: at 1 million about 2,000


class Chunks(Sequence[T], Generic[T]):
    """A tuple in pieces. Reading is that of a tuple; `changed` is linear in the number of pieces, not of items."""

    def __init__(self, items: Iterable[T] = ()) -> None:
        self._chunks = tuple(_cut(items))
        self._len = sum(map(len, self._chunks))

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(self._chunks)

    def __reversed__(self) -> Iterator[T]:
        return chain.from_iterable(map(reversed, reversed(self._chunks)))

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[T, ...]: ...
    def __getitem__(self, place: int | slice) -> T | tuple[T, ...]:
        if isinstance(place, slice):
            return tuple(self[i] for i in range(*place.indices(self._len)))
        if not -self._len <= place < self._len:
            raise IndexError(f"{place} is outside a sequence of {self._len}")
        chunk, within = divmod(place % self._len, CHUNK)
        return self._chunks[chunk][within]

    def changed(self, replaced: Mapping[int, T], appended: Iterable[T] = ()) -> "Chunks[T]":
        """The sequence with other items at the places in `replaced` and some more at its end."""
        chunks = list(self._chunks)
        touched: dict[int, dict[int, T]] = {}
        for place, item in replaced.items():
            touched.setdefault(place // CHUNK, {})[place % CHUNK] = item
        for number, own in touched.items():
            items = list(chunks[number])
            for within, item in own.items():
                items[within] = item
            chunks[number] = tuple(items)
        open_ = chunks.pop() if chunks and len(chunks[-1]) < CHUNK else ()
        chunks.extend(_cut(chain(open_, appended)))
        made: Chunks[T] = Chunks()
        made._chunks = tuple(chunks)
        made._len = sum(map(len, chunks))
        return made


def _cut(items: Iterable[T]) -> Iterator[tuple[T, ...]]:
    iterator = iter(items)
    while chunk := tuple(islice(iterator, CHUNK)):
        yield chunk
