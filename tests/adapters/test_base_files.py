"""Which patterns of a tokenizer are taken, and which would let its matching take for ever."""

import pytest

from service.adapters.base_files import is_tame

KNOWN = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}",
    "bloom": r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "digits": r"[0-9][0-9][0-9]",
    "escaped": r"\(a+\)+\[\+",
    "lazy": r"a+?b*+c{2,}?",
    "a group once": r"(?:ab|cd)?(?:a+)",
    "a bounded group": r"(?:ab){1,3}",
    "literals in a group": r"(?:ab)+",
}
BOMBS = [
    r"(a+)+$",
    r"(a*)*",
    r"(?:a|aa)+$",
    r"((a+))+",
    r"(?:(?:a|b)c)*",
    r"(a{2,})+",
    r"(?i:x+)*",
    r"(?<name>a+)+",
    "a" * 5_000,
]


@pytest.mark.parametrize("name", KNOWN)
def test_the_patterns_of_known_tokenizers_are_taken(name: str) -> None:
    assert is_tame(KNOWN[name])


@pytest.mark.parametrize("pattern", BOMBS, ids=lambda pattern: pattern[:20])
def test_a_group_that_repeats_or_chooses_is_not_repeated(pattern: str) -> None:
    assert not is_tame(pattern)


@pytest.mark.parametrize("pattern", ["", "(", ")", "[", "\\", "a{", "(a+", "[[", "*", "+)", "|", "()+"])
def test_what_is_no_pattern_ends(pattern: str) -> None:
    is_tame(pattern)
