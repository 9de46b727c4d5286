"""Keys against both stores, and at the door of the API."""

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.security import HTTPBearer
from starlette.testclient import TestClient
from starlette.types import Scope as HttpScope

from service.access.schemas import Principal, Scope
from service.access.service import AccessService
from service.audit import repository as audit
from service.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable, TooManyRequests, Unauthenticated
from service.http.credentials import token_of
from service.http.failure_limit import FailureLimiter
from service.http.rate_limit import RateLimiter, RateLimitMiddleware
from service.kit.db import Database
from service.kit.rates import MOST_KEYS, Rates
from service.settings import Settings
from tests.conftest import SetClock

READ = frozenset({Scope.READ})


class Stopwatch:
    """Monotonic seconds that a test turns."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def stopwatch() -> Stopwatch:
    return Stopwatch()


@pytest.fixture
def access(database: Database, clock: SetClock, stopwatch: Stopwatch) -> AccessService:
    return AccessService(database, clock, stopwatch)


def test_a_new_keys_token_stands_for_it(access: AccessService) -> None:
    created = access.create("shop", frozenset({Scope.READ, Scope.WRITE}), actor="cli")
    found = access.authenticate(created.token)
    assert found == Principal(created.key.key_id, "shop", frozenset({Scope.READ, Scope.WRITE}))
    assert found.actor == f"key:{created.key.key_id}"


def test_the_store_never_holds_the_token(access: AccessService, database: Database) -> None:
    created = access.create("shop", READ, actor="cli")
    secret = created.token.split("_", 2)[2]
    with database.read() as connection:
        for table in ("api_keys", "audit_log"):
            assert secret not in str(connection.exec_driver_sql(f"SELECT * FROM {table}").all())  # noqa: S608


def test_admin_implies_the_others_and_write_does_not_imply_read() -> None:
    assert all(Principal("k", "n", frozenset({Scope.ADMIN})).allows(scope) for scope in Scope)
    assert not Principal("k", "n", frozenset({Scope.WRITE})).allows(Scope.READ)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: "",
        lambda t: "x",
        lambda t: t[:-1],
        lambda t: t + "x",
        lambda t: "adp_" + "0" * 12 + "_x",
        lambda t: t.replace("adp_", "adp_\x00"),
        lambda t: t.upper(),
    ],
)
def test_a_token_that_is_not_whole_is_refused(access: AccessService, spoil: object) -> None:
    token = access.create("shop", READ, actor="cli").token
    with pytest.raises(Unauthenticated):
        access.authenticate(spoil(token))  # type: ignore[operator]


def test_a_key_is_refused_from_its_expiry_on_even_while_it_is_remembered(
    access: AccessService, clock: SetClock
) -> None:
    token = access.create("shop", READ, actor="cli", expires_in=timedelta(hours=1)).token
    clock.advance(minutes=59, seconds=59)
    access.authenticate(token)
    clock.advance(seconds=1)
    assert access.remembered(token) is None
    with pytest.raises(Unauthenticated):
        access.authenticate(token)


def test_a_key_that_another_process_revoked_is_refused_within_five_seconds(
    access: AccessService, database: Database, clock: SetClock, stopwatch: Stopwatch
) -> None:
    created = access.create("shop", READ, actor="cli")
    access.authenticate(created.token)
    AccessService(database, clock).revoke(created.key.key_id, actor="cli")
    stopwatch.seconds += 5
    with pytest.raises(Unauthenticated):
        access.authenticate(created.token)


def test_a_key_revoked_here_is_refused_at_once_and_revoking_twice_is_one_deed(
    access: AccessService, database: Database
) -> None:
    created = access.create("shop", READ, actor="cli")
    access.authenticate(created.token)
    access.revoke(created.key.key_id, actor="cli")
    access.revoke(created.key.key_id, actor="cli")
    with pytest.raises(Unauthenticated):
        access.authenticate(created.token)
    with database.read() as connection:
        actions = [entry["action"] for entry in audit.page(connection, limit=9, before=None)]
    assert actions == ["key.revoke", "key.create"]


def test_revoking_an_unknown_key_says_so(access: AccessService) -> None:
    with pytest.raises(NotFound):
        access.revoke("nope", actor="cli")


def test_the_last_use_is_noted_at_most_once_a_minute(
    access: AccessService, clock: SetClock, stopwatch: Stopwatch
) -> None:
    token, started = access.create("shop", READ, actor="cli").token, clock()
    noted = []
    for seconds in (0, 30, 29, 1, 59):
        clock.advance(seconds=seconds)
        stopwatch.seconds += 10
        access.authenticate(token)
        [key] = access.list()
        assert key.last_used_at is not None
        noted.append((key.last_used_at - started).total_seconds())
    assert noted == [0, 0, 0, 60, 60]


@pytest.mark.parametrize("name", ["", "  ", "x" * 129, "a\nb", "\x00"])
def test_a_name_has_1_to_128_printable_characters(access: AccessService, name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        access.create(name, READ, actor="cli")
    assert [error.pointer for error in refused.value.errors] == ["/name"]


def test_a_key_needs_a_scope_and_a_sensible_expiry(access: AccessService) -> None:
    for expires_in in (timedelta(0), timedelta(days=3651)):
        with pytest.raises(InvalidRequest) as refused:
            access.create("shop", frozenset(), actor="cli", expires_in=expires_in)
        assert [error.pointer for error in refused.value.errors] == ["/scopes", "/expires_in"]


def test_a_known_key_stays_good_while_the_store_is_gone_and_an_unknown_one_is_not_judged(
    clock: SetClock, stopwatch: Stopwatch, database: Database
) -> None:
    access = AccessService(database, clock, stopwatch, without_store=Settings().keys_without_store)
    token = access.create("shop", READ, actor="cli").token
    other = access.create("other", READ, actor="cli").token
    access.authenticate(token)
    # A server that is not there: the same service, its database pointed at a port where nothing listens.
    access._database = Database("postgresql://nobody@127.0.0.1:1/none", lock_timeout_s=1)
    stopwatch.seconds += 60
    assert access.authenticate(token).name == "shop"
    with pytest.raises(StoreUnavailable):
        access.authenticate(other)
    stopwatch.seconds += 300
    with pytest.raises(StoreUnavailable):
        access.authenticate(token)


def test_while_the_store_is_gone_a_known_key_may_read_and_no_more(
    clock: SetClock, stopwatch: Stopwatch, database: Database
) -> None:
    access = AccessService(database, clock, stopwatch, without_store=timedelta(seconds=5))
    token = access.create("shop", frozenset({Scope.ADMIN}), actor="cli").token
    access.authenticate(token)
    access._database = Database("postgresql://nobody@127.0.0.1:1/none", lock_timeout_s=1)
    stopwatch.seconds += 5
    assert access.authenticate(token, Scope.READ).name == "shop"
    for scope in (Scope.WRITE, Scope.ADMIN):
        with pytest.raises(StoreUnavailable):
            access.authenticate(token, scope)


@pytest.mark.parametrize(("allowed", "good_after_s"), [(timedelta(0), 4), (timedelta(hours=8), 8 * 3600)])
def test_how_long_a_key_reads_without_the_store_can_be_set(
    clock: SetClock, stopwatch: Stopwatch, database: Database, allowed: timedelta, good_after_s: float
) -> None:
    access = AccessService(database, clock, stopwatch, without_store=allowed)
    token = access.create("shop", frozenset({Scope.ADMIN}), actor="cli").token
    access.authenticate(token)
    access._database = Database("postgresql://nobody@127.0.0.1:1/none", lock_timeout_s=1)
    stopwatch.seconds += good_after_s
    assert access.authenticate(token, Scope.READ).name == "shop"
    assert access.was_good(token), "a flood of bad keys from its address does not keep it out"
    for scope in (Scope.WRITE, Scope.ADMIN):
        if allowed:
            with pytest.raises(StoreUnavailable):
                access.authenticate(token, scope)
    stopwatch.seconds += 1
    with pytest.raises(StoreUnavailable):
        access.authenticate(token, Scope.READ)
    assert access.was_good(token) == (not allowed)  # for five minutes at least


# --- rotation ---


def test_a_rotated_key_has_a_successor_and_is_good_for_its_grace(access: AccessService, clock: SetClock) -> None:
    old = access.create("shop", frozenset({Scope.READ, Scope.WRITE}), actor="cli")
    access.authenticate(old.token)
    clock.advance(days=1)
    new = access.rotate(old.key.key_id, actor="cli", grace=timedelta(hours=1))
    assert (new.key.name, new.key.scopes, new.key.expires_at) == ("shop", old.key.scopes, None)
    assert access.authenticate(new.token).key_id == new.key.key_id != old.key.key_id
    assert access.list()[0].replaced_by == new.key.key_id
    clock.advance(minutes=59, seconds=59)
    access.authenticate(old.token)
    clock.advance(seconds=1)
    with pytest.raises(Unauthenticated):
        access.authenticate(old.token)
    access.authenticate(new.token)


def test_without_a_grace_the_old_key_is_refused_at_once_here_and_within_five_seconds_elsewhere(
    access: AccessService, database: Database, clock: SetClock, stopwatch: Stopwatch
) -> None:
    old = access.create("shop", READ, actor="cli")
    elsewhere = AccessService(database, clock, stopwatch)
    for one in (access, elsewhere):
        one.authenticate(old.token)
    access.rotate(old.key.key_id, actor="cli", grace=timedelta(0))
    stopwatch.seconds += 5
    for one in (access, elsewhere):
        with pytest.raises(Unauthenticated):
            one.authenticate(old.token)


def test_a_successor_lives_as_long_as_the_old_key_was_made_for_which_its_grace_does_not_prolong(
    access: AccessService, clock: SetClock
) -> None:
    old = access.create("shop", READ, actor="cli", expires_in=timedelta(days=30))
    clock.advance(days=29)
    new = access.rotate(old.key.key_id, actor="cli", grace=timedelta(days=7))
    assert new.key.expires_at == clock() + timedelta(days=30)
    assert access.find(old.key.key_id).expires_at == old.key.expires_at
    shorter = access.rotate(new.key.key_id, actor="cli", grace=timedelta(0), expires_in=timedelta(days=2))
    assert shorter.key.expires_at == clock() + timedelta(days=2)


def test_only_a_good_key_is_rotated_and_only_once(access: AccessService, database: Database, clock: SetClock) -> None:
    hour = timedelta(hours=1)
    with pytest.raises(NotFound):
        access.rotate("nope", actor="cli", grace=hour)
    rotated, revoked = (access.create("shop", READ, actor="cli").key.key_id for _ in range(2))
    expired = access.create("shop", READ, actor="cli", expires_in=hour).key.key_id
    successor = access.rotate(rotated, actor="cli", grace=hour).key.key_id
    access.revoke(revoked, actor="cli")
    clock.advance(hours=1)
    with pytest.raises(Conflict, match=successor):
        access.rotate(rotated, actor="cli", grace=hour)
    for key_id in (revoked, expired):
        with pytest.raises(Conflict, match="no longer good"):
            access.rotate(key_id, actor="cli", grace=hour)
    for grace in (timedelta(seconds=-1), timedelta(days=91)):
        with pytest.raises(InvalidRequest) as refused:
            access.rotate(successor, actor="cli", grace=grace)
        assert [error.pointer for error in refused.value.errors] == ["/grace"]
    with database.read() as connection:
        newest = audit.page(connection, limit=2, before=None)
    assert [entry["action"] for entry in newest] == ["key.revoke", "key.rotate"]
    assert (newest[1]["subject"], newest[1]["details"]["replaced_by"]) == (rotated, successor)


# --- at the door ---

DOORS = [
    ("POST", "/v1/events", Scope.WRITE),
    ("GET", "/v1/users/u/events", Scope.READ),
    ("DELETE", "/v1/users/u", Scope.WRITE),
    ("PUT", "/v1/items", Scope.WRITE),
    ("GET", "/v1/items/i", Scope.READ),
    ("DELETE", "/v1/items/i", Scope.WRITE),
    ("GET", "/v1/admin/audit", Scope.ADMIN),
]


@pytest.mark.parametrize(("method", "path", "scope"), DOORS)
def test_each_route_asks_for_its_scope(app: FastAPI, client: TestClient, method: str, path: str, scope: Scope) -> None:
    access: AccessService = app.state.services.access
    for given in Scope:
        token = access.create(given, frozenset({given}), actor="cli").token
        status = client.request(method, path, headers={"Authorization": f"Bearer {token}"}).status_code
        assert (status == 403) == (given not in (scope, Scope.ADMIN)), given


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer x", "Basic eDp5", "bearer adp_0_0", "Bearer \xff"]
)
def test_without_a_good_key_the_reply_is_the_same_401(client: TestClient, header: str | None) -> None:
    headers = [] if header is None else [(b"Authorization", header.encode("latin-1"))]
    for method, path, _ in DOORS:
        reply = client.request(method, path, headers=headers)
        assert reply.status_code == 401
        assert reply.headers["WWW-Authenticate"] == "Bearer"
        body = reply.json()
        assert (body["slug"], body["detail"]) == (
            "unauthenticated",
            "a valid API key is needed: Authorization: Bearer KEY",
        )


def test_a_flood_of_bad_keys_is_refused_cheaply_and_good_ones_pass(app: FastAPI, client: TestClient) -> None:
    services, burst = app.state.services, 10
    services.failures._rates = Rates(0.001, burst)  # on a slow machine ten requests take a while
    good = {"Authorization": f"Bearer {services.access.create('shop', READ, actor='cli').token}"}
    assert client.get("/v1/users/u/events", headers=good).status_code == 200

    def bad(number: int) -> int:
        headers = {"Authorization": f"Bearer adp_{number:012x}_{'x' * 43}"}
        return client.get("/v1/users/u/events", headers=headers).status_code

    assert [bad(number) for number in range(burst)] == [401] * burst
    statements: list[str] = []
    with watched(services.database, statements):
        assert [bad(burst + number) for number in range(20)] == [429] * 20
        reply = client.put("/v1/items", content=b"[" * 1_000_000)  # no key: neither read nor parsed
    assert statements == []
    assert (reply.status_code, reply.json()["slug"]) == (429, "too_many_requests")
    assert int(reply.headers["Retry-After"]) >= 1
    assert client.get("/v1/users/u/events", headers=good).status_code == 200
    assert client.get("/health/live").status_code == 200


@contextmanager
def watched(database: Database, statements: list[str]) -> Iterator[None]:
    """Collects what the store is asked while the block runs, by requests for keys."""

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "api_keys" in statement:
            statements.append(statement)

    sa.event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield
    finally:
        sa.event.remove(database.engine, "before_cursor_execute", note)


def test_addresses_that_failed_take_bounded_memory_and_ipv6_counts_by_network() -> None:
    limiter = FailureLimiter(1.0, 2)
    for number in range(3 * MOST_KEYS):
        limiter.note({"client": (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1)})
    assert limiter._rates is not None
    assert len(limiter._rates._even_at) <= MOST_KEYS
    for host in ("2001:db8::1", "2001:db8::2"):
        limiter.check({"client": ("2001:db8::3", 1)})
        limiter.note({"client": (host, 1)})
    with pytest.raises(TooManyRequests):
        limiter.check({"client": ("2001:db8::3", 1)})
    limiter.check({"client": ("2001:db8:0:1::3", 1)})


def test_white_space_after_a_key_makes_no_other_key_of_it() -> None:
    burst, served, refused = 5, [], []

    async def app(scope: HttpScope, receive: object, send: object) -> None:
        served.append(scope)

    limited = RateLimitMiddleware(app, RateLimiter(0.001, burst))

    async def ask(after: bytes) -> None:
        headers = [(b"authorization", b"Bearer adp_1_secret" + after)]
        scope: HttpScope = {"type": "http", "path": "/v1/items/i", "headers": headers}
        try:
            await limited(scope, None, None)  # type: ignore[arg-type]  # neither is used
        except TooManyRequests as error:
            refused.append(error.status)

    async def run() -> None:
        for after in itertools.islice(itertools.product((b"\xa0", b"\x85", b" ", b""), repeat=3), 2 * burst):
            await ask(b"".join(after))
        await ask(b"other")  # is another key

    asyncio.run(run())
    assert (len(served), refused) == (burst + 1, [429] * burst)


@pytest.mark.parametrize(
    ("header", "token"),
    [
        (b"Bearer x", "x"),
        (b"Bearer  x\xa0\x85", "x"),
        (b"Bearer \xffx", "\xffx"),
        (b"Bearer x y", "x y"),
        (b"Bearer", ""),
        (b"", ""),
    ],
)
def test_the_limits_know_a_token_as_the_authentication_does(header: bytes, token: str) -> None:
    scope = {"type": "http", "headers": [(b"authorization", header), (b"authorization", b"Bearer second")]}
    assert token_of(scope) == token
    read = asyncio.run(HTTPBearer(auto_error=False)(Request(scope)))
    assert (read.credentials if read else "") == token
