"""A body is read once the key is known to be good, within bounds, and what is wrong in it is named as ever."""

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.testclient import TestClient

from service.access.schemas import Scope
from service.http.bodies import SMALL
from service.kit.rates import Rates
from tests.http.test_middleware import assert_problem

JSON = {"Content-Type": "application/json"}
RECOMMEND, ROLL_BACK, TRY = (
    ("POST", "/v1/recommendations"),
    ("POST", "/v1/admin/adapters/rollback"),
    ("PUT", "/v1/admin/trial"),
)


def taking(app: FastAPI) -> list[tuple[str, str]]:
    """Method and path of every operation that takes a body."""
    paths = app.openapi()["paths"]
    return [
        (method.upper(), path.replace("{version}", "a000001-0123456789ab"))
        for path, operations in paths.items()
        for method, operation in operations.items()
        if "requestBody" in operation
    ]


def test_who_has_no_key_is_told_that_whatever_the_body_is_like(app: FastAPI, client: TestClient) -> None:
    assert {RECOMMEND, ROLL_BACK, TRY, ("POST", "/v1/events"), ("PUT", "/v1/items")} < {*taking(app)}
    for method, path in taking(app):
        for body in (b"{", b"", b"\xff", b'{"limit": 0}', b"[" * 100_000):
            assert_problem(client.request(method, path, content=body, headers=JSON), 401, "unauthenticated")


def test_the_framework_reads_no_body_for_it_would_before_it_looks_at_the_key(app: FastAPI) -> None:
    routes = [context.original_route for context in iter_route_contexts(app.routes)]
    found = [route for route in routes if isinstance(route, APIRoute)]
    assert len(found) > 30
    assert [route.path for route in found if route.body_field is not None] == []


def test_malformed_bodies_without_a_key_count_as_its_failures(app: FastAPI, client: TestClient) -> None:
    for method, path in taking(app):
        app.state.services.failures._rates = Rates(0.001, 3)  # on a slow machine three requests take a while
        found = [client.request(method, path, content=b"{", headers=JSON).status_code for _ in range(5)]
        assert found == [401, 401, 401, 429, 429], path


@pytest.mark.parametrize("scope", [Scope.WRITE, Scope.READ])
def test_a_key_without_the_scope_is_told_that_before_its_body_is_read(
    app: FastAPI, client: TestClient, scope: Scope
) -> None:
    token = app.state.services.access.create("k", frozenset({scope}), actor="cli").token
    [asks] = {RECOMMEND} if scope is Scope.WRITE else {ROLL_BACK}
    reply = client.request(*asks, content=b"{", headers=JSON | {"Authorization": f"Bearer {token}"})
    assert_problem(reply, 403, "forbidden")


@pytest.mark.parametrize(
    ("route", "body", "pointer", "code"),
    [
        (RECOMMEND, b"", "", "missing"),
        (RECOMMEND, b"{", "", "json_invalid"),
        (RECOMMEND, b"\xff", "", "json_invalid"),
        (RECOMMEND, b"[" * 100_000, "", "json_invalid"),
        (RECOMMEND, b'{"limit": ' + b"1" * 5_000 + b"}", "", "json_invalid"),
        (RECOMMEND, b"null", "", "model_attributes_type"),
        (RECOMMEND, b'{"limit": 0}', "/limit", "greater_than_equal"),
        (RECOMMEND, b'{"user_id": "\\ud800"}', "/user_id", "string_unicode"),
        (RECOMMEND, b'{"history": ["a", 1]}', "/history/1", "string_type"),
        (RECOMMEND, b'{"filters": {"a/b": 1}}', "/filters/a~1b", "extra_forbidden"),
        (ROLL_BACK, b"[]", "", "model_attributes_type"),
        (ROLL_BACK, b'{"to_version": "x"}', "/to_version", "string_pattern_mismatch"),
        (TRY, b"", "", "missing"),
        (TRY, b"{}", "/adapter_version", "missing"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    admin: TestClient, route: tuple[str, str], body: bytes, pointer: str, code: str
) -> None:
    found = assert_problem(admin.request(*route, content=body, headers=JSON), 422, "invalid_request")
    assert (found["errors"][0]["pointer"], found["errors"][0]["code"]) == (pointer, code)


@pytest.mark.parametrize("route", [RECOMMEND, ROLL_BACK, TRY])
@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}, {"Content-Type": "multipart/form-data"}])
def test_what_does_not_say_that_it_is_json_is_told_to(
    admin: TestClient, route: tuple[str, str], headers: dict[str, str]
) -> None:
    found = assert_problem(admin.request(*route, content=b"{}", headers=headers), 422, "invalid_request")
    assert "send Content-Type: application/json" in found["detail"]


@pytest.mark.parametrize("body", [b"", b"null", b"{}"])
def test_a_body_that_may_be_left_out_may_be(admin: TestClient, body: bytes) -> None:
    reply = admin.request(*ROLL_BACK, content=body, headers=JSON)
    assert_problem(reply, 409, "conflict")  # there is nothing to go back to


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/vnd.shop+json", "APPLICATION/JSON"])
def test_json_has_several_names(admin: TestClient, kind: str) -> None:
    assert admin.request(*RECOMMEND, content=b"{}", headers={"Content-Type": kind}).status_code == 200


def test_questions_have_room_of_their_own_and_give_it_back(app: FastAPI, admin: TestClient, client: TestClient) -> None:
    services = app.state.services

    def ask(**headers: str) -> Any:
        return admin.request(*RECOMMEND, content=b"{}", headers=JSON | headers)

    with services.questions.place() as add:
        add(services.settings.intake_max_bytes // 2 - 1)
        reply = ask()
        assert_problem(reply, 503, "unavailable")
        assert 1 <= int(reply.headers["Retry-After"]) <= 3
        assert ask(Authorization="").status_code == 401  # takes none of it
        assert admin.request(*ROLL_BACK, content=b"{}", headers=JSON).status_code == 409
        events = {"events": [1], "items": []}
        assert admin.post("/v1/events", json=events).status_code == 422
    with services.intake.place() as place:
        place.add(services.settings.intake_max_bytes)
        assert ask().status_code == 200
    for body in (b"{}", b"{", b'{"limit": 0}'):
        admin.request(*RECOMMEND, content=body, headers=JSON)
    with services.questions.place() as add:
        add(services.settings.intake_max_bytes // 2)  # all of it


@pytest.mark.parametrize("route", [ROLL_BACK, ("POST", "/v1/admin/adapters/a/promote"), TRY])
def test_an_admins_body_is_small(admin: TestClient, route: tuple[str, str]) -> None:
    body = b'{"reason": "' + b"\\u0061" * 500 + b'"}'
    assert admin.request(*route, content=body, headers=JSON).status_code in (404, 409, 422)
    reply = admin.request(*route, content=body + b" " * SMALL, headers=JSON)
    assert_problem(reply, 413, "payload_too_large")
    assert reply.headers["Connection"] == "close"


def test_so_is_the_dashboards_login(client: TestClient) -> None:
    headers = {"Origin": "http://testserver", "Content-Type": "application/x-www-form-urlencoded"}
    assert client.post("/dashboard/login", content=b"key=" + b"x" * 90, headers=headers).status_code == 401
    assert client.post("/dashboard/login", content=b"key=" + b"x" * SMALL, headers=headers).status_code == 413
