"""A sequence in pieces reads as a tuple does, and its successor leaves it as it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.kit import chunks
from service.kit.chunks import Chunks


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 4)


numbers = st.lists(st.integers(), max_size=20)


@given(numbers)
def test_it_reads_as_a_tuple(items: list[int]) -> None:
    made = Chunks(items)
    assert (len(made), list(made)) == (len(items), items)
    assert [made[i] for i in range(-len(items), len(items))] == items + items
    assert made[1:7:2] == tuple(items[1:7:2])
    for outside in (len(items), -len(items) - 1):
        with pytest.raises(IndexError):
            made[outside]


@given(numbers, st.dictionaries(st.integers(0, 19), st.integers()), numbers)
def test_a_change_makes_another_sequence(items: list[int], replaced: dict[int, int], appended: list[int]) -> None:
    replaced = {place: item for place, item in replaced.items() if place < len(items)}
    held = Chunks(items)
    changed = held.changed(replaced, appended)
    assert list(changed) == [replaced.get(i, item) for i, item in enumerate(items)] + appended
    assert list(changed.changed({}, [1])) == [*changed, 1]
    assert list(held) == items


def test_it_is_read_backwards_as_a_tuple_is() -> None:
    for count in (0, 1, chunks.CHUNK, 3 * chunks.CHUNK + 1):
        assert list(reversed(Chunks(range(count)))) == list(reversed(range(count)))
