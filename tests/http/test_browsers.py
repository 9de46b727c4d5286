"""What browsers are told: headers of every page, failures included, and which origins may call."""

import re
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.errors import ConfigurationError
from service.http.docs import policy_of
from service.settings import Environment, Settings, load_settings
from tests.conftest import SetClock

SHOP = "https://shop.example"
EVERYWHERE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health/live", 200),
        ("GET", "/metrics", 200),
        ("GET", "/docs", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/dashboard", 200),
        ("GET", "/dashboard/login", 200),
        ("POST", "/dashboard/login", 403),
        ("GET", "/nowhere", 404),
        ("PATCH", "/v1/events", 405),
        ("GET", "/v1/admin/audit", 401),
        ("POST", "/v1/events", 401),
        ("GET", "/dashboard/nowhere", 404),
    ],
)
def test_every_reply_carries_them(client: TestClient, method: str, path: str, status: int) -> None:
    reply = client.request(method, path)
    assert reply.status_code == status
    assert {name: reply.headers[name] for name in EVERYWHERE} == EVERYWHERE
    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in reply.headers["Content-Security-Policy"]
    assert reply.headers["Referrer-Policy"] in ("no-referrer", "same-origin")
    assert reply.headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in reply.headers
    assert "Server" not in reply.headers


def test_a_body_that_is_too_large_is_refused_with_them(client: TestClient) -> None:
    reply = client.post("/v1/events", content=b" " * 1_048_577)
    assert reply.status_code == 413
    assert {name: reply.headers[name] for name in EVERYWHERE} == EVERYWHERE


def test_the_documentation_may_run_its_own_two_scripts_and_no_other(client: TestClient) -> None:
    reply = client.get("/docs")
    policy = reply.headers["Content-Security-Policy"]
    [source] = re.findall(r'<script src="([^"]+)"', reply.text)
    assert f"script-src {source} 'sha256-" in policy
    assert "'unsafe-inline'" not in re.findall(r"script-src[^;]*", policy)[0]
    assert policy_of(reply.text.replace("SwaggerUIBundle", "somethingElse")) != policy


def test_production_serves_no_documentation_unless_it_is_asked_to(settings: Settings, clock: SetClock) -> None:
    for docs, status in ((None, 404), (True, 200)):
        chosen = settings.model_copy(update={"environment": Environment.PRODUCTION, "docs": docs})
        with TestClient(create_app(chosen, clock=clock)) as client:
            assert {client.get(path).status_code for path in ("/docs", "/openapi.json")} == {status}


# --- other origins ---


@pytest.fixture
def shop(settings: Settings, clock: SetClock) -> Iterator[TestClient]:
    """The application that lets the pages of one origin in."""
    app = create_app(settings.model_copy(update={"cors_origins": frozenset({SHOP})}), clock=clock)
    with TestClient(app) as client:
        yield client


PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type",
}


def test_no_origin_may_call_unless_it_is_named(client: TestClient) -> None:
    reply = client.options("/v1/events", headers={"Origin": SHOP, **PREFLIGHT})
    assert reply.status_code == 405
    assert not [name for name in reply.headers if name.lower().startswith("access-control-")]


def test_a_named_origin_may_call_without_cookies(shop: TestClient) -> None:
    reply = shop.options("/v1/events", headers={"Origin": SHOP, **PREFLIGHT})
    assert (reply.status_code, reply.headers["Access-Control-Allow-Origin"]) == (200, SHOP)
    refused = shop.post("/v1/events", headers={"Origin": SHOP})  # so that the page may read why
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, SHOP)
    assert "Access-Control-Allow-Credentials" not in {**reply.headers, **refused.headers}


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "http://shop.example", "https://shop.example.evil.example", "null", SHOP + ":8443"],
)
def test_any_other_origin_may_not(shop: TestClient, origin: str) -> None:
    assert shop.options("/v1/events", headers={"Origin": origin, **PREFLIGHT}).status_code == 400
    assert "Access-Control-Allow-Origin" not in shop.get("/health/live", headers={"Origin": origin}).headers


@pytest.mark.parametrize("wrong", ["*", "https://*.shop.example", "shop.example", "https://shop.example/", "null", ""])
def test_only_exact_origins_can_be_named(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("ADAPTIDE_CORS_ORIGINS", f'["{wrong}"]')
    with pytest.raises(ConfigurationError, match="ADAPTIDE_CORS_ORIGINS"):
        load_settings()
