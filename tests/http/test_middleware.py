"""Request context, body limit, problems and headers, on the real application and over plain ASGI."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from service.errors import Conflict, StoreUnavailable, TooManyRequests
from service.http.body_limit import BodyLimitMiddleware
from service.telemetry import REGISTRY

PROBLEM_KEYS = {"type", "title", "status", "detail", "slug", "request_id", "errors"}


def assert_problem(reply: Any, status: int, slug: str) -> dict[str, Any]:
    body: dict[str, Any] = reply.json()
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"
    assert set(body) == PROBLEM_KEYS
    assert (body["status"], body["slug"], body["type"]) == (status, slug, f"urn:adaptide:problem:{slug}")
    assert body["request_id"] == reply.headers["X-Request-ID"]
    return body


# --- identifiers ---


def test_a_sensible_request_id_is_taken_over(client: TestClient) -> None:
    reply = client.get("/health/live", headers={"X-Request-ID": "shop-7.a_B"})
    assert reply.headers["X-Request-ID"] == "shop-7.a_B"


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\tb", "é", 'a"b', "a\x0bb"])
def test_any_other_request_id_is_replaced(client: TestClient, given: str) -> None:
    reply = client.get("/health/live", headers=[(b"X-Request-ID", given.encode("latin-1"))])
    assert len(reply.headers["X-Request-ID"]) == 36


def test_requests_are_counted_by_route_template_not_by_path(admin: TestClient) -> None:
    labels = {"method": "GET", "route": "/v1/users/{user_id:path}/events", "status": "200"}
    before = REGISTRY.get_sample_value("adaptide_http_request_seconds_count", labels) or 0
    admin.get("/v1/users/alice/events")
    admin.get("/v1/users/bob/events")
    assert REGISTRY.get_sample_value("adaptide_http_request_seconds_count", labels) == before + 2
    text = admin.get("/metrics").text
    assert "alice" not in text


def test_an_unknown_route_and_method_share_one_label(client: TestClient) -> None:
    client.get("/nowhere/1")
    client.request("BREW", "/nowhere/2")
    text = client.get("/metrics").text
    assert 'method="GET",route="unmatched",status="404"' in text
    assert 'method="OTHER",route="unmatched",status="404"' in text
    assert "nowhere" not in text
    assert "BREW" not in text


# --- problems ---


@pytest.fixture
def failing(app: FastAPI) -> Iterator[TestClient]:
    """The application with routes that fail in each way."""

    def conflict() -> None:
        raise Conflict("it moved on")

    def busy() -> None:
        raise TooManyRequests("slow down", retry_after=7)

    def store() -> None:
        raise StoreUnavailable("connection to 10.0.0.7 as secret_user refused")

    def defect() -> None:
        raise RuntimeError("secret detail")

    for call in (conflict, busy, store, defect):
        app.get(f"/fail/{call.__name__}")(call)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_an_expected_failure_is_a_problem(failing: TestClient) -> None:
    body = assert_problem(failing.get("/fail/conflict"), 409, "conflict")
    assert (body["title"], body["detail"], body["errors"]) == ("Conflict with the present state", "it moved on", [])


def test_429_and_503_say_when_to_come_back(failing: TestClient) -> None:
    reply = failing.get("/fail/busy")
    assert_problem(reply, 429, "too_many_requests")
    assert reply.headers["Retry-After"] == "7"
    reply = failing.get("/fail/store")
    assert_problem(reply, 503, "store_unavailable")
    assert reply.headers["Retry-After"] == "1"
    assert "secret" not in reply.text


def test_a_defect_is_a_500_that_leaks_nothing_and_is_logged_with_its_traceback(
    failing: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    reply = failing.get("/fail/defect", headers={"X-Request-ID": "find-me"})
    assert_problem(reply, 500, "internal")
    assert "secret" not in reply.text
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    logged = "".join(capsys.readouterr())
    assert "request_crashed" in logged
    assert "secret detail" in logged
    assert "Traceback" in logged


def test_an_unknown_address_and_method_are_problems(client: TestClient) -> None:
    assert_problem(client.get("/nowhere"), 404, "not_found")
    reply = client.patch("/v1/events")
    assert_problem(reply, 405, "method_not_allowed")
    assert reply.headers["Allow"] == "POST"


def test_a_wrong_parameter_has_a_pointer_and_a_code(admin: TestClient) -> None:
    body = assert_problem(admin.get("/v1/admin/audit?limit=0"), 422, "invalid_request")
    assert [(e["pointer"], e["code"]) for e in body["errors"]] == [("/query/limit", "greater_than_equal")]


def test_a_pointer_escapes_what_json_pointers_escape(admin: TestClient) -> None:
    body = admin.put("/v1/items", json={"items": [{"item_id": "i", "title": "t", "a/b~c": 1}]}).json()
    assert body["errors"][0]["pointer"] == "/items/0/a~1b~0c"


def test_a_reply_names_at_most_a_hundred_places(admin: TestClient) -> None:
    body = admin.put("/v1/items", json={"items": [{} for _ in range(300)]}).json()
    assert len(body["errors"]) == 100


def test_replies_carry_the_security_headers(client: TestClient) -> None:
    headers = client.get("/health/live").headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")


# --- the body limit ---


def test_a_declared_body_above_the_limit_is_refused(admin: TestClient) -> None:
    reply = admin.post("/v1/events", content=b" " * 1_048_577)
    assert_problem(reply, 413, "payload_too_large")
    assert reply.headers["Connection"] == "close"


def test_a_chunked_body_above_the_limit_is_refused(admin: TestClient) -> None:
    for path, verb in (("/v1/events", "POST"), ("/v1/items", "PUT")):
        chunks = (b" " * 65_536 for _ in range(40))
        headers = {"Content-Type": "application/json"}
        assert_problem(admin.request(verb, path, content=chunks, headers=headers), 413, "payload_too_large")


def test_a_body_of_exactly_the_limit_is_read(admin: TestClient) -> None:
    body = json.dumps({"events": [1]}).encode()
    reply = admin.post("/v1/events", content=body + b" " * (1_048_576 - len(body)))
    assert reply.status_code == 202


@pytest.mark.parametrize("length", [b"99999999999999999999999999", b"-1", b"x", b""])
def test_a_strange_content_length_does_not_pass_more_than_the_limit(length: bytes) -> None:
    assert asyncio.run(_read_through(10, [b"x" * 8, b"x" * 8, b"x" * 8], length))[0] == 413


def test_nothing_beyond_the_limit_is_asked_for() -> None:
    status, received = asyncio.run(_read_through(10, [b"x" * 8] * 1000, None))
    assert (status, received) == (413, 2)


async def _read_through(limit: int, chunks: list[bytes], length: bytes | None) -> tuple[int, int]:
    """Status of the reply and number of chunks taken from the network, for an application that reads everything."""
    sent: list[Message] = []
    taken = 0

    async def greedy(scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            more = (await receive()).get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Message:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": chunks[taken - 1], "more_body": taken < len(chunks)}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [] if length is None else [(b"content-length", length)]
    scope: Scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    await BodyLimitMiddleware(greedy, limit)(scope, receive, send)
    return sent[0]["status"], taken


def test_logs_hold_no_key_and_no_user(admin: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    admin.get("/v1/users/alice-in-person/events")
    logged = "".join(capsys.readouterr())
    assert "request_served" in logged
    assert "alice-in-person" not in logged
    assert admin.headers["Authorization"].removeprefix("Bearer ") not in logged
