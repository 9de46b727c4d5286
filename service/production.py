"""What production refuses to start with: defaults that nobody chose, missing or well-known secrets."""

import ipaddress
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

if TYPE_CHECKING:
    from service.settings import Settings

WELL_KNOWN = frozenset(
    {"adaptide", "admin", "changeme", "default", "example", "guest", "password", "postgres", "redis", "secret", "test"}
)
"""Passwords that examples and images carry."""
SHORTEST = 8
DISTINCT = 8
"""Characters that a signing key has, well-known words aside; 32 random digits have fewer once in a thousand times."""
_RANDOM = f"(no word or piece over and over, {DISTINCT} different characters or more: openssl rand -hex 32)"
_POSTGRES_ELSEWHERE = ("PGPASSWORD", "PGPASSFILE", "PGSERVICE", "PGSSLCERT")
_PROVES_ITSELF = frozenset({"password", "passfile", "service", "sslcert"})  # in the query of a URL


def faults(settings: "Settings", environment: Mapping[str, str]) -> list[str]:
    """What has to be done before production, in words that follow "until"; empty: nothing. No secret is in them."""
    return [*_database(settings, environment), *_redis(settings), *_others(settings, environment)]


def _database(settings: "Settings", environment: Mapping[str, str]) -> Iterator[str]:
    given = settings.database_url.get_secret_value()
    if not given:
        yield "ADAPTIDE_DATABASE_URL names the store (the default is a file under HOME)"
        return
    url = _parsed(given)
    if url is None or url.get_backend_name() != "postgresql" or not _over_network(url):
        return  # a wrong URL is said where it is opened; SQLite and a socket are guarded by the file system
    if url.password is None and not (_PROVES_ITSELF & url.query.keys() or environment.keys() & {*_POSTGRES_ELSEWHERE}):
        yield "ADAPTIDE_DATABASE_URL carries a password (or PGPASSFILE or sslcert proves who this is)"
    elif _guessable(url):
        yield f"the password in ADAPTIDE_DATABASE_URL is one of its own, {SHORTEST} characters at least"


def _redis(settings: "Settings") -> Iterator[str]:
    url = _parsed(settings.redis_url.get_secret_value())
    if url is None or not _over_network(url):
        return
    if not url.password and "password" not in url.query:
        yield "ADAPTIDE_REDIS_URL carries a password: redis://:PASSWORD@HOST"
    elif _guessable(url):
        yield f"the password in ADAPTIDE_REDIS_URL is one of its own, {SHORTEST} characters at least"


def _others(settings: "Settings", environment: Mapping[str, str]) -> Iterator[str]:
    if not settings.artifacts_url:
        yield "ADAPTIDE_ARTIFACTS_URL names the place of artifacts (the default is a folder under HOME)"
    if not settings.signing_key.get_secret_value():
        yield "ADAPTIDE_SIGNING_KEY is set"
    elif _is_no_chance(settings.signing_key.get_secret_value()):
        yield f"ADAPTIDE_SIGNING_KEY is random {_RANDOM}"
    if any(_is_no_chance(key) for key in settings.keys_accepted):
        yield f"every key of ADAPTIDE_SIGNING_KEYS_ACCEPTED is random {_RANDOM}"
    if tests := sorted(name for name in environment if name.startswith("ADAPTIDE_TEST_")):
        yield f"{', '.join(tests)} is unset: it is for tests"


def _is_no_chance(key: str) -> bool:
    """Whether a signing key is one that somebody typed: a piece again and again, or little more than known words."""
    left = key.lower()
    for word in WELL_KNOWN:
        left = left.replace(word, "")
    return len(set(left)) < DISTINCT or key in (key + key)[1:-1]


def _parsed(given: str) -> URL | None:
    try:
        return make_url(given)
    except (ArgumentError, ValueError):
        return None


def _over_network(url: URL) -> bool:
    """Whether who connects comes from another machine than who listens."""
    host = url.host or str(url.query.get("host", ""))
    if not host or host.startswith("/") or host == "localhost" or "unix" in url.drivername:
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


def _guessable(url: URL) -> bool:
    password = str(url.password or "")
    return bool(password) and (
        len(password) < SHORTEST
        or password.lower() in WELL_KNOWN
        or password == url.username
        or password == url.database
    )
