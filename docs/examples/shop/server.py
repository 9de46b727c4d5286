"""A web shop's page that shows recommendations and tells what was seen and clicked.

    ADAPTIDE_SHOP_KEY=ak_.. python docs/examples/shop/server.py

beside a service (`make demo` prints a key), then open http://127.0.0.1:8080. The key (scopes read and write) stays in
this process: browsers talk to the shop, and the shop talks to Adaptide. ADAPTIDE_SHOP_API is where Adaptide is
(http://127.0.0.1:8000), ADAPTIDE_SHOP_PORT where the shop listens. In a shop of your own, `recommendations` and
`happened` below are what you take over.
"""

import json
import os
import sys
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from html import escape
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from urllib.parse import parse_qs, quote, unquote, urlsplit

from service.client import Client, ClientError, Event, EventBatcher, RecommendationReply, RecommendationRequest, Retries

HERE = Path(__file__).parent
MOST_BODY = 64 * 1024
REMEMBERED = 10_000  # lists that were shown, in which a click is looked up
STATIC = {"/shop.js": "text/javascript", "/shop.css": "text/css"}


class Shop:
    """What the pages need: recommendations for a visitor, and events of what became of them."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.events = EventBatcher(client, linger=0.5, when_full="drop")  # a page never waits for its statistics
        self._shown: OrderedDict[str, tuple[str, list[str]]] = OrderedDict()
        self._lock = Lock()

    def recommendations(self, visitor: str) -> RecommendationReply | None:
        """None when they cannot be had now: a shop sells without them, too."""
        try:
            reply = self.client.recommend(RecommendationRequest(user_id=visitor, limit=12))
        except ClientError as error:
            print(f"no recommendations: {error}", file=sys.stderr)  # an example
            return None
        with self._lock:
            self._shown[reply.recommendation_id] = (visitor, [item.item_id for item in reply.items])
            while len(self._shown) > REMEMBERED:
                self._shown.popitem(last=False)
        return reply

    def happened(self, visitor: str, event_type: str, recommendation_id: str, positions: Sequence[int]) -> list[str]:
        """Note it, and return the items. Only what this visitor was shown counts: anybody can send a form."""
        with self._lock:
            whose, items = self._shown.get(recommendation_id, ("", []))
        if whose != visitor:
            return []
        found = [(position, items[position - 1]) for position in positions if 1 <= position <= len(items)]
        for position, item_id in found:
            self.events.add(
                Event(
                    user_id=visitor,
                    item_id=item_id,
                    event_type=event_type,
                    recommendation_id=recommendation_id,
                    position=position,
                )
            )
        return [item_id for _, item_id in found]

    def title(self, item_id: str) -> str:
        try:
            return self.client.get_item(item_id).title
        except ClientError:
            return item_id


def page(title: str, content: str) -> str:
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="stylesheet" href="/shop.css"><script src="/shop.js" defer></script>'
        f"<main><h1>{escape(title)}</h1>{content}</main></html>"
    )


def shelf(reply: RecommendationReply | None) -> str:
    """The list; each item is a button of a form, so that it works without JavaScript."""
    if reply is None or not reply.items:
        return "<p>We have nothing to suggest right now.</p>"
    shown = quote(reply.recommendation_id)
    items = "".join(
        f'<li data-position="{item.rank}"><form method="post" action="/click">'
        f'<input type="hidden" name="recommendation_id" value="{escape(reply.recommendation_id)}">'
        f'<input type="hidden" name="position" value="{item.rank}">'
        f"<button>{escape(item.title or item.item_id)}</button></form></li>"
        for item in reply.items
    )
    without_script = f'<noscript><img src="/seen.gif?recommendation_id={shown}" alt="" width="1" height="1"></noscript>'
    return f'<ol class="shelf" data-recommendation="{escape(reply.recommendation_id)}">{items}</ol>{without_script}'


class Handler(BaseHTTPRequestHandler):
    shop: Shop
    _GIF = bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b")

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        visitor, known = self._visitor()
        if address.path == "/":
            self._html(page("For you", shelf(self.shop.recommendations(visitor))), None if known else visitor)
        elif address.path.startswith("/item/"):
            title = self.shop.title(unquote(address.path.removeprefix("/item/")))
            self._html(page(title, '<p>Thank you for looking.</p><p><a href="/">More for you</a></p>'))
        elif address.path == "/seen.gif":
            found = parse_qs(address.query).get("recommendation_id", [""])[0]
            self.shop.happened(visitor, "impression", found, range(1, 13))
            self._send(200, self._GIF, "image/gif")
        elif address.path in STATIC:
            self._send(200, (HERE / address.path[1:]).read_bytes(), STATIC[address.path])
        else:
            self._send(404, b"There is no such page.", "text/plain")

    def do_POST(self) -> None:
        visitor, _ = self._visitor()
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 < length <= MOST_BODY:
            self._send(413, b"That is too much.", "text/plain")
            return
        body = self.rfile.read(length).decode("utf-8", "replace")
        try:
            if self.path == "/seen":
                found = json.loads(body)
                positions = [int(position) for position in found["positions"]][:100]
                self.shop.happened(visitor, "impression", str(found["recommendation_id"]), positions)
                self._send(204, b"", "text/plain")
            elif self.path == "/click":
                form = {name: values[0] for name, values in parse_qs(body).items()}
                items = self.shop.happened(visitor, "click", form["recommendation_id"], [int(form["position"])])
                self._redirect(f"/item/{quote(items[0], safe='')}" if items else "/")
            else:
                self._send(404, b"There is no such page.", "text/plain")
        except (KeyError, TypeError, ValueError):
            self._send(400, b"That form is not one of ours.", "text/plain")

    def _visitor(self) -> tuple[str, bool]:
        """Who asks, and whether a cookie said so."""
        cookie = SimpleCookie(self.headers.get("Cookie", "")).get("visitor")
        if cookie is not None and 1 <= len(cookie.value) <= 64 and cookie.value.replace("-", "").isalnum():
            return cookie.value, True
        return uuid.uuid4().hex, False

    def _html(self, text: str, visitor: str | None = None) -> None:
        self._send(200, text.encode(), "text/html; charset=utf-8", visitor)

    def _redirect(self, address: str) -> None:
        self.send_response(303)
        self.send_header("Location", address)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, status: int, body: bytes, kind: str, visitor: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        if visitor is not None:
            self.send_header("Set-Cookie", f"visitor={visitor}; Path=/; HttpOnly; SameSite=Lax; Max-Age=31536000")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: a visitor is nobody's business."""


def open_shop(client: Client, port: int) -> ThreadingHTTPServer:
    """A server on 127.0.0.1, not serving yet; its `shop` is to be closed after it (`shop.events.close()`)."""
    shop = Shop(client)
    handler = type("ShopHandler", (Handler,), {"shop": shop})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.shop = shop  # type: ignore[attr-defined]
    return server


def main() -> None:
    key = os.environ.get("ADAPTIDE_SHOP_KEY")
    if not key:
        sys.exit("set ADAPTIDE_SHOP_KEY to a key: adaptide keys create --name shop --scope read,write")
    api = os.environ.get("ADAPTIDE_SHOP_API", "http://127.0.0.1:8000")
    # A page waits a second at most, and does not try twice: without recommendations it is still a page.
    with Client(api, key, timeout=1.0, retries=Retries(attempts=1)) as client:
        server = open_shop(client, int(os.environ.get("ADAPTIDE_SHOP_PORT", "8080")))
        print(f"the shop is open at http://127.0.0.1:{server.server_port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            server.shop.events.close()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
