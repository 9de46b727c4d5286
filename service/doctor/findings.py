"""What a look at an installation finds, line by line."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from service.errors import AdaptideError


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """It works; something is not as it should be, or will not stay well."""
    PROBLEM = "problem"
    """Something does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """check: what was looked at. said: what is the case. advice: what to do, for what is not ok. No secrets."""

    level: Level
    check: str
    said: str
    advice: str | None = None


def ok(check: str, said: str) -> Finding:
    return Finding(Level.OK, check, said)


def warning(check: str, said: str, advice: str) -> Finding:
    return Finding(Level.WARNING, check, said, advice)


def problem(check: str, said: str, advice: str) -> Finding:
    return Finding(Level.PROBLEM, check, said, advice)


Check = Callable[[], Iterable[Finding]]


def look(name: str, check: Check) -> Iterator[Finding]:
    """What `check` finds; one that fails is a problem, and the others are looked at all the same."""
    try:
        yield from check()
    except AdaptideError as error:
        yield problem(name, error.detail, "what is said there; then look again: adaptide doctor")
    except Exception as error:  # a doctor must not die of what it finds
        yield problem(name, f"{type(error).__name__} while looking", f"report it as a defect: {error}"[:300])
