"""The dashboard's door and first page, on the real application as a browser meets them."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.access.schemas import Scope
from service.access.service import AccessService
from service.adapters import service as registry
from service.app import create_app
from service.dashboard.schemas import IDLE, LIFETIME
from service.dashboard.service import SESSIONS_PER_KEY
from service.dashboard.tables import dashboard_sessions
from service.dashboard.visitors import cookie_name
from service.kit.db import Database
from service.kit.rates import Rates
from service.settings import Environment, Settings
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock

SITE = "http://testserver"
OWN = {"Origin": SITE, "Sec-Fetch-Site": "same-origin"}
FORMS = ("/dashboard/promote", "/dashboard/rollback", "/dashboard/logout")


class Browser:
    """Follows nothing by itself; sends what a browser sends with a form of the page."""

    def __init__(self, client: TestClient, access: AccessService) -> None:
        self.client, self.access = client, access
        client.follow_redirects = False

    def key(self, *scopes: Scope) -> str:
        return self.access.create("ops", frozenset(scopes), actor="cli").token

    def log_in(self, *scopes: Scope) -> str:
        """The key that the session was opened with."""
        token = self.key(*scopes)
        reply = self.client.post("/dashboard/login", data={"key": token}, headers=OWN)
        assert (reply.status_code, reply.headers["Location"]) == (303, "/dashboard"), reply.text
        return token

    def page(self) -> str:
        reply = self.client.get("/dashboard")
        assert reply.status_code == 200, reply.text
        return str(reply.text)

    def csrf(self) -> str:
        found = re.search(r'name="csrf" value="(\w+)"', self.page())
        assert found is not None
        return found[1]

    def inside(self) -> bool:
        reply = self.client.get("/dashboard")
        assert reply.status_code == 200 or reply.headers["Location"] == "/dashboard/login"
        return bool(reply.status_code == 200)

    def plant(self, secret: str | None) -> None:
        self.client.cookies.set("adaptide", secret or "", domain="testserver.local", path="/")

    @property
    def cookie(self) -> str | None:
        return self.client.cookies.get("adaptide")


@pytest.fixture
def browser(app: FastAPI, client: TestClient) -> Browser:
    return Browser(client, app.state.services.access)


@pytest.fixture
def shelf(tmp_path: Path, database: Database, clock: SetClock, settings: Settings) -> Shelf:
    shelf = Shelf(tmp_path, database, clock)
    shelf.artifacts.root = settings.artifacts_dir
    return shelf


def sessions(database: Database) -> int:
    with database.read() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(dashboard_sessions)) or 0


def audit(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.scalars(sa.text("SELECT action FROM audit_log ORDER BY audit_id")))


# --- the door ---


def test_without_a_session_every_page_and_form_leads_to_the_login(browser: Browser) -> None:
    assert not browser.inside()
    for path in FORMS:
        reply = browser.client.post(path, headers=OWN, data={"csrf": "x"})
        assert (reply.status_code, reply.headers["Location"]) == (303, "/dashboard/login")
    assert browser.client.get("/dashboard/login").status_code == 200


def test_a_key_that_may_read_is_exchanged_for_a_cookie_that_scripts_and_other_sites_cannot_use(
    browser: Browser, database: Database
) -> None:
    token = browser.key(Scope.READ)
    reply = browser.client.post("/dashboard/login", data={"key": f" {token} "}, headers=OWN)
    attributes = {part.strip().lower() for part in reply.headers["Set-Cookie"].split(";")[1:]}
    assert attributes == {"httponly", "samesite=strict", "path=/", f"max-age={int(LIFETIME.total_seconds())}"}
    assert browser.inside()
    with database.read() as connection:
        stored = str(connection.execute(sa.select(dashboard_sessions)).all())
    assert browser.cookie is not None
    assert browser.cookie not in stored
    assert audit(database)[-1] == "session.open"


@pytest.mark.parametrize(
    "spoil", [lambda key: key[:-1], lambda key: "adp_0_0", lambda key: "\x00", lambda key: "x" * 199]
)
def test_what_is_no_good_key_is_not_let_in_and_the_reply_is_the_same(browser: Browser, spoil: object) -> None:
    bad = browser.client.post("/dashboard/login", data={"key": spoil(browser.key(Scope.ADMIN))}, headers=OWN)  # type: ignore[operator]
    writer = browser.client.post("/dashboard/login", data={"key": browser.key(Scope.WRITE)}, headers=OWN)
    assert (bad.status_code, bad.text) == (writer.status_code, writer.text)
    assert bad.status_code == 401
    assert "Set-Cookie" not in bad.headers
    assert not browser.inside()


def test_a_revoked_key_ends_its_sessions_at_once_on_every_replica(
    browser: Browser, database: Database, clock: SetClock
) -> None:
    token = browser.log_in(Scope.ADMIN)
    assert browser.inside()
    AccessService(database, clock).revoke(token.split("_")[1], actor="cli")  # as another process does
    assert not browser.inside()


def test_a_session_ends_when_its_key_expires(browser: Browser, clock: SetClock) -> None:
    token = browser.access.create("ops", frozenset({Scope.READ}), actor="cli", expires_in=timedelta(minutes=5)).token
    browser.client.post("/dashboard/login", data={"key": token}, headers=OWN)
    assert browser.inside()
    clock.advance(minutes=5)
    assert not browser.inside()


def test_an_idle_session_ends_and_one_in_use_lives_on_to_its_lifetime(browser: Browser, clock: SetClock) -> None:
    browser.log_in(Scope.READ)
    step = IDLE - timedelta(minutes=1)
    lived = timedelta(0)
    while lived + step < LIFETIME:
        clock.now += step
        lived += step
        assert browser.inside()
    clock.now += LIFETIME - lived
    assert not browser.inside()

    browser.log_in(Scope.READ)
    clock.now += IDLE
    assert not browser.inside()


def test_ended_sessions_are_removed_and_a_key_has_so_many_at_most(
    browser: Browser, database: Database, clock: SetClock
) -> None:
    token = browser.key(Scope.READ)
    for _ in range(SESSIONS_PER_KEY + 3):
        browser.client.cookies.clear()
        clock.advance(seconds=1)
        browser.client.post("/dashboard/login", data={"key": token}, headers=OWN)
    assert sessions(database) == SESSIONS_PER_KEY
    assert browser.inside()
    clock.now += LIFETIME
    browser.log_in(Scope.READ)
    assert sessions(database) == 1


def test_a_cookie_that_was_planted_is_never_taken_over(browser: Browser, database: Database) -> None:
    browser.plant("planted-by-somebody")
    assert not browser.inside()
    browser.log_in(Scope.ADMIN)
    assert browser.cookie != "planted-by-somebody"
    first = browser.cookie
    browser.log_in(Scope.ADMIN)  # again: another secret, and the one before is worth nothing
    assert browser.cookie != first
    assert sessions(database) == 1
    browser.plant(first)
    assert not browser.inside()


def test_logging_out_ends_the_session_for_whoever_kept_its_cookie(browser: Browser, database: Database) -> None:
    browser.log_in(Scope.READ)
    kept = browser.cookie
    reply = browser.client.post("/dashboard/logout", data={"csrf": browser.csrf()}, headers=OWN)
    assert (reply.status_code, reply.headers["Location"]) == (303, "/dashboard/login")
    assert browser.cookie is None
    browser.plant(kept)
    assert not browser.inside()
    assert audit(database)[-1] == "session.close"


def test_tries_to_log_in_are_limited(browser: Browser, app: FastAPI) -> None:
    app.state.services.failures._rates = Rates(0.001, 5)  # on a slow machine five tries take a while
    tries = {"key": "adp_000000000000_" + "x" * 43}
    statuses = [browser.client.post("/dashboard/login", data=tries, headers=OWN).status_code for _ in range(7)]
    assert statuses == [401] * 5 + [429] * 2
    refused = browser.client.post("/dashboard/login", data={"key": browser.key(Scope.ADMIN)}, headers=OWN)
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.headers["Content-Type"].startswith("text/html")


# --- forged forms ---

FOREIGN = [
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": SITE, "Sec-Fetch-Site": "same-site"},
    {"Origin": SITE + ".evil.example"},
    {"Origin": "http://testserver:81"},
    {"Sec-Fetch-Site": "none"},
    {"Referer": SITE + "/dashboard"},
    {},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_form_from_elsewhere_is_refused_even_with_cookie_and_token(
    browser: Browser, headers: dict[str, str], shelf: Shelf, database: Database
) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    browser.log_in(Scope.ADMIN)
    form = {"csrf": browser.csrf(), "version": version, "revision": "1", "confirmation": version}
    for path in FORMS:
        assert browser.client.post(path, headers=headers, data=form).status_code == 403
    assert registry.read_registry(database).pointer.adapter_version is None
    assert browser.inside()
    browser.client.cookies.clear()
    login = browser.client.post("/dashboard/login", headers=headers, data={"key": browser.key(Scope.ADMIN)})
    assert login.status_code == 403
    assert browser.cookie is None


def test_a_form_without_its_sessions_token_is_refused(browser: Browser, shelf: Shelf, database: Database) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    browser.log_in(Scope.ADMIN)
    others = browser.csrf()
    browser.client.cookies.clear()
    browser.log_in(Scope.ADMIN)
    form = {"version": version, "revision": "1", "confirmation": version}
    for token in ({}, {"csrf": ""}, {"csrf": "é"}, {"csrf": others}, {"csrf": browser.cookie or ""}):
        reply = browser.client.post("/dashboard/promote", headers=OWN, data=form | token)
        assert reply.status_code == 403, token
    in_address = browser.client.post(f"/dashboard/promote?csrf={browser.csrf()}", headers=OWN, data=form)
    assert in_address.status_code == 403
    assert registry.read_registry(database).pointer.adapter_version is None
    assert audit(database)[-1] == "admin.refused"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ('{"csrf": "x"}', "application/json"),
        ("csrf=x", "text/plain"),
        ("csrf=x", "multipart/form-data; boundary=a"),
        ("csrf=%ff", "application/x-www-form-urlencoded"),
        ("&".join(f"f{n}=1" for n in range(99)), "application/x-www-form-urlencoded"),
        ("csrf=a&csrf=b", "application/x-www-form-urlencoded"),
        ("é", "application/x-www-form-urlencoded"),
    ],
)
def test_what_is_no_form_is_refused(browser: Browser, body: str, kind: str) -> None:
    browser.log_in(Scope.ADMIN)
    reply = browser.client.post("/dashboard/promote", content=body.encode(), headers=OWN | {"Content-Type": kind})
    assert reply.status_code == 422


# --- the page ---


def test_the_page_names_what_serves_the_adapters_and_nothing_to_change_for_a_reader(
    browser: Browser, shelf: Shelf
) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    browser.log_in(Scope.READ)
    page = browser.page()
    assert version in page
    assert "What serves now" in page
    assert "None has been closed yet." in page
    assert "/dashboard/promote" not in page
    form = {"csrf": browser.csrf(), "version": version, "revision": "1", "confirmation": version}
    assert browser.client.post("/dashboard/promote", headers=OWN, data=form).status_code == 403


def test_a_promotion_and_a_rollback_want_the_version_typed_and_the_revision_that_was_seen(
    browser: Browser, shelf: Shelf, database: Database
) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    token = browser.log_in(Scope.ADMIN)
    csrf = browser.csrf()
    form = {"csrf": csrf, "version": version, "revision": "1", "confirmation": version, "reason": "looks good"}

    def post(action: str, **changed: str) -> int:
        return browser.client.post(f"/dashboard/{action}", headers=OWN, data=form | changed).status_code

    assert post("promote", confirmation="yes") == 422
    assert post("promote", version="nonsense", confirmation="nonsense") == 422
    assert post("promote", revision="0") == 412
    assert post("promote") == 303
    assert post("promote") == 412
    moved = registry.read_adapter(database, version).history[0]
    assert (moved.actor, moved.reason, moved.revision) == (f"key:{token.split('_')[1]}", "looks good", 2)
    assert 'value="base"' in browser.page()  # what a rollback would go to
    assert post("rollback", version="base", confirmation="base", revision="2") == 303
    assert registry.read_registry(database).pointer.adapter_version is None
    assert audit(database).count("admin.refused") == 4


def test_what_others_wrote_is_shown_as_text(browser: Browser, database: Database) -> None:
    token = browser.access.create("<script>alert(1)</script>", frozenset({Scope.READ}), actor="cli").token
    browser.client.post("/dashboard/login", data={"key": token}, headers=OWN)
    page = browser.page()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>" not in page


def test_pages_run_only_scripts_of_this_server_and_cannot_be_framed(browser: Browser) -> None:
    browser.log_in(Scope.ADMIN)
    for path in ("/dashboard", "/dashboard/login"):
        reply = browser.client.get(path)
        policy = dict(part.strip().split(" ", 1) for part in reply.headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        for kind in ("form-action", "style-src", "script-src", "connect-src", "img-src"):
            assert policy[kind] == "'self'"  # no inline script or style, no eval
        assert reply.headers["Cache-Control"] == "no-store"
        assert (
            reply.headers["Referrer-Policy"] == "same-origin"
        )  # with no-referrer our own forms would say Origin: null
        scripts = re.findall(r"<script[^>]*>", reply.text)
        assert all(re.fullmatch(r'<script src="/dashboard/static/[\w./-]+" defer>', script) for script in scripts)
        assert not re.search(r"style=|\son\w+=|javascript:|hx-on", reply.text)
        assert '<html lang="en">' in reply.text


def test_every_field_has_a_label_and_every_table_its_headings(browser: Browser, shelf: Shelf) -> None:
    shelf.adapter(shelf.active_base(), 0.1)
    browser.log_in(Scope.ADMIN)
    page = browser.page()
    labelled = re.sub(r"<label[^>]*>.*?</label>", "", page, flags=re.DOTALL)
    assert not re.search(r'<input(?![^>]*type="hidden")', labelled)
    assert "<th>" not in page  # each says of what it is the heading: scope="col", scope="row"


def test_a_store_that_does_not_answer_is_a_page_that_says_so(browser: Browser, app: FastAPI) -> None:
    browser.log_in(Scope.READ)
    app.state.services.sessions._database = Database("postgresql://nobody@127.0.0.1:1/none", lock_timeout_s=1)
    reply = browser.client.get("/dashboard")
    assert reply.status_code == 503
    assert "The store did not answer" in reply.text
    assert reply.headers["Retry-After"] == "1"


@pytest.fixture
def production(settings: Settings, tmp_path: Path, clock: SetClock) -> Iterator[Browser]:
    chosen = settings.model_copy(update={"environment": Environment.PRODUCTION, "artifacts_url": str(tmp_path)})
    app = create_app(chosen, clock=clock)
    with TestClient(app, base_url="https://testserver", raise_server_exceptions=False) as client:
        yield Browser(client, app.state.services.access)


def test_in_production_the_cookie_is_of_this_host_alone_and_over_tls(production: Browser, settings: Settings) -> None:
    headers = {"Origin": "https://testserver", "Sec-Fetch-Site": "same-origin"}
    token = production.key(Scope.READ)
    reply = production.client.post("/dashboard/login", data={"key": token}, headers=headers)
    name, _, rest = reply.headers["Set-Cookie"].partition("=")
    assert name == "__Host-adaptide" != cookie_name(settings)
    assert {"secure", "path=/", "httponly", "samesite=strict"} <= {part.strip().lower() for part in rest.split(";")}
    assert production.inside()
    assert production.client.get("/dashboard").headers["Strict-Transport-Security"]
