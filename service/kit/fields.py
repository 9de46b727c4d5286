"""Strings that both stores can keep, as types that a request's schema can name."""

from typing import Annotated

from pydantic import StringConstraints

NO_CONTROLS = "^[^\x00-\x1f\x7f-\x9f]+$"
NO_NUL = "^[^\x00]*$"  # PostgreSQL cannot store U+0000; lone surrogates are refused by pydantic itself
UUID_PATTERN = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"

Identifier = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=128, pattern=NO_CONTROLS)]
"""1 to 128 characters, none of them a control character."""


def shown(text: str) -> str:
    """`text` for a reply or a log: lone surrogates, which UTF-8 cannot carry, are escaped; long text is cut."""
    return text[:500].encode("utf-8", "backslashreplace").decode()
