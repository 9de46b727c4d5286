"""Strings that both stores can keep, and times, as types that a request's schema can name."""

import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BeforeValidator, StringConstraints

NO_CONTROLS = "^[^\x00-\x1f\x7f-\x9f]+$"
NO_NUL = "^[^\x00]*$"  # PostgreSQL cannot store U+0000; lone surrogates are refused by pydantic itself
UUID_PATTERN = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"

Identifier = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=128, pattern=NO_CONTROLS)]
"""1 to 128 characters, none of them a control character."""

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def rfc3339(value: Any) -> Any:
    """`value` as it is, if it is RFC 3339 text or a datetime. Pydantic by itself takes seconds since 1970 too."""
    if isinstance(value, datetime) or (isinstance(value, str) and len(value) <= 40 and _RFC3339.fullmatch(value)):
        return value
    raise ValueError("a date and time with its offset is needed, such as 2026-03-01T12:00:00Z")


Moment = Annotated[AwareDatetime, BeforeValidator(rfc3339)]
"""RFC 3339 text with an offset."""


def shown(text: str) -> str:
    """`text` for a reply or a log: lone surrogates, which UTF-8 cannot carry, are escaped; long text is cut."""
    return text[:500].encode("utf-8", "backslashreplace").decode()
