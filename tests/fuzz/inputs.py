"""What the fuzz tests feed in: bytes and JSON values, any and nearly right, and how many examples a run takes.

`make test` takes few of each property, fresh ones every time; `make fuzz` as many as ADAPTIDE_TEST_FUZZ_EXAMPLES says.
What once went wrong stays as an `@example` of its property.
"""

import gzip
import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from service.errors import AdaptideError

EXAMPLES = int(os.environ.get("ADAPTIDE_TEST_FUZZ_EXAMPLES", "0"))
"""Of each property; 0: as few as each names."""


def fuzz(few: int) -> Callable[..., Any]:
    """The settings of a property: `few` examples, or ADAPTIDE_TEST_FUZZ_EXAMPLES."""
    ignored = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=EXAMPLES or few, deadline=None, suppress_health_check=ignored)


any_text = st.text(st.characters(codec=None), max_size=40)
"""Lone surrogates, NUL and control characters too."""
any_number = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 2**64, 10**400, -1, 0, 1e308, 5e-324, -0.0]),
)
any_json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | any_number | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=12,
)
"""What json.loads can give, and NaN and infinities, which it also takes."""
ENCODABLE = st.text(st.characters(codec="utf-8"), max_size=40)
encodable_json: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | ENCODABLE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ENCODABLE, inner, max_size=4),
    max_leaves=12,
)
"""What can be written as JSON."""


def deep(levels: int) -> list[Any]:
    """[[[...]]]"""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@st.composite
def edited(draw: st.DrawFn, source: bytes, most: int = 4) -> bytes:
    """`source` with a few pieces replaced, cut out, doubled, or cut off at the end."""
    data = bytearray(source)
    for _ in range(draw(st.integers(0, most))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 24))
        match draw(st.sampled_from(["replace", "flip", "double", "end"])):
            case "replace":
                data[at : at + length] = draw(st.binary(max_size=24) | st.sampled_from(PIECES))
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "double":
                data[at:at] = data[at : at + length] * draw(st.integers(1, 40))
            case "end":
                del data[at:]
    return bytes(data)


PIECES = [
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r",
    b"\r\n",
    b"\n",
    b'"',
    b'""',
    b",",
    b"\x1a",
    b"\xed\xa0\x80",
    b"{",
    b"[",
    b"9" * 30,
]


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, 1)


def worded(refused: AdaptideError) -> None:
    """It says why, in text that can be sent and printed."""
    assert refused.detail.encode("utf-8", "backslashreplace")
