"""A history becomes the very tokens that the base was trained with."""

from pathlib import Path

import numpy as np
import pytest

from service.catalog.trie import as_codes
from service.errors import ArtifactError
from service.generation.prompt import COMPACT, PROMPT_FILE, Prompt, load_prompt

TEXT = Prompt("instruction", 100, np.array([1, 2]), np.array([3]), np.array([4, 5]))
TWO = as_codes([(0, 1, 2, 3), (255, 0, 0, 1)])


def test_the_compact_prompt_is_the_items_behind_the_start_token() -> None:
    assert COMPACT.encode(TWO).tolist() == [1, 3, 260, 517, 774, 258, 259, 515, 772]
    assert COMPACT.is_plain


def test_text_stands_before_between_and_after_the_items() -> None:
    items = [[100, 357, 614, 871], [355, 356, 612, 869]]
    assert TEXT.encode(TWO).tolist() == [1, 2, *items[0], 3, *items[1], 4, 5]
    assert TEXT.trunk(TWO).tolist() == [1, 2, *items[0], 3, *items[1]]
    assert [TEXT.trunk_length(n) for n in (0, 1, 2)] == [2, 6, 11]
    assert not TEXT.is_plain


def test_an_empty_history_leaves_the_fixed_text() -> None:
    assert TEXT.encode(as_codes([])).tolist() == [1, 2, 4, 5]
    assert COMPACT.encode(as_codes([])).tolist() == [1]


def test_a_prompt_is_read_back_as_it_was_saved_and_compact_where_there_is_none(tmp_path: Path) -> None:
    assert load_prompt(tmp_path) is COMPACT
    TEXT.save(tmp_path)
    found = load_prompt(tmp_path)
    assert (found.kind, found.first_code_token) == ("instruction", 100)
    assert found.encode(TWO).tolist() == TEXT.encode(TWO).tolist()


@pytest.mark.parametrize(
    "held",
    [
        "no json",
        "{}",
        '{"kind":"x","first_code_token":1,"before":[],"between":[],"after":[]}',
        '{"kind":"x","first_code_token":1,"before":[-1],"between":[],"after":[]}',
        '{"kind":"x","first_code_token":1,"before":[1e99],"between":[],"after":[]}',
        '{"kind":"x","first_code_token":1,"before":' + str([1] * 5000) + ',"between":[],"after":[]}',
    ],
)
def test_a_spoilt_prompt_file_is_refused(tmp_path: Path, held: str) -> None:
    (tmp_path / PROMPT_FILE).write_text(held)
    with pytest.raises(ArtifactError):
        load_prompt(tmp_path)
