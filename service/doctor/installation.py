"""What is installed, and whether that is enough for what the settings ask for."""

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import InvalidRequirement, Requirement

from service.doctor.findings import Finding, ok, problem, warning
from service.settings import EngineName, Settings

Installed = Callable[[str], str | None]


def installed(name: str) -> str | None:
    """A package's version; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check_packages(settings: Settings, found: Installed = installed) -> Iterator[Finding]:
    """The packages that `adaptide` asks for, and those of the extras that the settings need."""
    own = found("adaptide")
    if own is None:
        yield warning("adaptide", "it runs from a folder and is not installed", "pip install -c constraints.txt -e .")
    else:
        yield ok("adaptide", f"{own} on Python {platform.python_version()}")
    wrong = missing = 0
    for wanted in _required():
        there = found(wanted.name)
        if there is None:
            missing += 1
            yield problem("packages", f"{wanted.name} is missing", f"pip install -c constraints.txt '{wanted}'")
        elif not wanted.specifier.contains(there, prereleases=True):
            wrong += 1
            advice = f"pip install -c constraints.txt '{wanted}'"
            yield warning("packages", f"{wanted.name} {there} is outside {wanted.specifier}", advice)
    if not wrong + missing:
        yield ok("packages", "all that are required, in versions that fit")
    for extra, packages, why in _needed(settings):
        absent = [name for name in packages if found(name) is None]
        if absent:
            yield problem("extras", f"{why} needs {', '.join(absent)}", f"pip install 'adaptide[{extra}]'")
        else:
            yield ok("extras", f"{why}: {', '.join(f'{name} {found(name)}' for name in packages)}")


def _required() -> list[Requirement]:
    """Those of no extra; none for code that is not installed."""
    try:
        lines = requires("adaptide") or []
    except PackageNotFoundError:
        return []
    parsed = []
    for line in lines:
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            continue
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            parsed.append(wanted)
    return parsed


def _needed(settings: Settings) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """(extra, its packages, what wants it)."""
    if settings.store_url.startswith("postgresql"):
        yield "postgres", ("psycopg",), "PostgreSQL"
    if settings.redis_url.get_secret_value():
        yield "redis", ("redis",), "Redis"
    if settings.artifacts_remote is not None:
        yield "s3", ("fsspec", "obstore"), "an object store"
    if settings.engine is EngineName.VLLM:
        yield "vllm (by hand, docs/vllm.md)", ("vllm",), "ADAPTIDE_ENGINE=vllm"
