"""Keys against both stores, and at the door of the API."""

from datetime import timedelta

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.access.schemas import Principal, Scope
from service.access.service import AccessService
from service.audit import repository as audit
from service.errors import InvalidRequest, NotFound, StoreUnavailable, Unauthenticated
from service.kit.db import Database
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
    secret = created.token.rpartition("_")[2]
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
    access = AccessService(database, clock, stopwatch)
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
