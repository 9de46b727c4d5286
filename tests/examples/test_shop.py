"""The example shop before a real service, with and without JavaScript."""

import importlib.util
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from service.access.schemas import Scope
from service.app import create_app
from service.client import Client, Event, Item, Retries
from service.events.tables import events
from service.kit.db import Database
from service.settings import Settings
from tests.conftest import SetClock
from tests.serving import InThread

SHOP = Path(__file__).parents[2] / "docs/examples/shop/server.py"
CHROMIUM = Path("/usr/bin/chromium")
QUIET = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
NASTY = '<script>alert("x")</script> & "quotes"'


@dataclass
class Street:
    """The shop's address, the service behind it and what was stored."""

    url: str
    api: InThread
    server: Any
    database: Database

    def stored(self, *types: str) -> list[tuple[Any, ...]]:
        self.server.shop.events.flush(30)
        with self.database.read() as connection:
            query = sa.select(events.c.event_type, events.c.item_id, events.c.position, events.c.recommendation_id)
            return [tuple(row) for row in connection.execute(query.where(events.c.event_type.in_(types)))]


@pytest.fixture
def street(settings: Settings, database: Database) -> Iterator[Street]:
    app = create_app(settings)  # by the real clock: the shop has no other
    spec = importlib.util.spec_from_file_location("example_shop", SHOP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    token = app.state.services.access.create("shop", frozenset({Scope.READ, Scope.WRITE}), actor="cli").token
    api = InThread(app)
    api.start()
    with Client(api.url, token, retries=Retries(attempts=1)) as client:
        client.put_items(
            [Item(item_id="a", title=NASTY), Item(item_id="b/ c", title="Tea"), Item(item_id="c", title="Jam")]
        )
        made = [
            Event(user_id=f"w{n}", item_id=i, event_type="buy", occurred_at=SetClock().now) for n, i in enumerate("aac")
        ]
        client.send_events(made)
        server: ThreadingHTTPServer = module.open_shop(client, 0)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Street(f"http://127.0.0.1:{server.server_port}", api, server, database)
        server.shutdown()
        thread.join()
        server.server_close()
        server.shop.events.close(5)  # type: ignore[attr-defined]
    if api._thread.is_alive():
        api.stop()


def form_of(html: str, position: int) -> dict[str, str]:
    found = re.search(r'name="recommendation_id" value="([^"]+)"', html)
    assert found is not None
    return {"recommendation_id": found[1], "position": str(position)}


def test_titles_are_escaped_and_nothing_of_the_key_reaches_the_page(street: Street) -> None:
    with httpx.Client(base_url=street.url) as browser:
        page = browser.get("/")
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; &quot;quotes&quot;" in page.text
    assert "<script>alert" not in page.text
    assert "ak_" not in page.text
    assert "HttpOnly" in page.headers["Set-Cookie"]


def test_a_click_and_what_was_seen_are_events_of_their_recommendation(street: Street) -> None:
    with httpx.Client(base_url=street.url, follow_redirects=True) as browser:
        form = form_of(browser.get("/").text, 1)
        browser.get("/seen.gif", params={"recommendation_id": form["recommendation_id"]})
        assert browser.post("/click", data=form).url.path == "/item/a"
    assert street.stored("click") == [("click", "a", 1, form["recommendation_id"])]
    assert {(position, item) for _, item, position, _ in street.stored("impression")} >= {(1, "a")}


def test_what_a_visitor_was_not_shown_is_no_event(street: Street) -> None:
    with httpx.Client(base_url=street.url) as browser:
        form = form_of(browser.get("/").text, 1)
        assert browser.post("/click", data={**form, "position": "99"}).headers["Location"] == "/"
        assert browser.post("/click", data={"position": "1"}).status_code == 400
        assert browser.post("/seen", content=b"no json").status_code == 400
        assert browser.post("/seen", content=b"x" * 100_000).status_code == 413
    with httpx.Client(base_url=street.url) as stranger:
        assert stranger.post("/click", data=form).headers["Location"] == "/"
    assert street.stored("click") == []


def test_the_shop_is_open_while_the_service_is_away(street: Street) -> None:
    street.api.stop()
    page = httpx.get(street.url)
    assert page.status_code == 200
    assert "We have nothing to suggest right now." in page.text


def test_a_browser_sees_clicks_and_is_told_about_both(street: Street) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        page = browser.new_page()
        page.goto(street.url)
        first = page.get_by_role("button").first
        assert first.inner_text() == NASTY
        deadline = time.monotonic() + 60
        while not street.stored("impression"):
            assert time.monotonic() < deadline
            page.wait_for_timeout(100)
        first.click()
        page.wait_for_url("**/item/a")
        assert page.get_by_role("heading").inner_text() == NASTY
        browser.close()
    (click,) = street.stored("click")
    assert click[:3] == ("click", "a", 1)
    assert ("impression", "a", 1, click[3]) in street.stored("impression")
