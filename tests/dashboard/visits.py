"""Somebody who opens pages of the real application and reads them."""

import html
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from starlette.testclient import TestClient

from service.access.schemas import Scope
from service.wiring import Services

OWN = {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}


@dataclass(frozen=True)
class Shown:
    """A page: its HTML and what a person reads in it, with every run of blanks as one."""

    status: int
    html: str
    headers: dict[str, str]

    @property
    def text(self) -> str:
        without = re.sub(r"<(svg|head|title)\b.*?</\1>|<[^>]+>", " ", self.html, flags=re.DOTALL)
        return re.sub(r"\s+", " ", html.unescape(without))

    def section(self, name: str) -> str:
        """The text of the section whose heading has this id."""
        found = re.search(rf'<section[^>]*aria-labelledby="{name}".*?</section>', self.html, flags=re.DOTALL)
        assert found is not None, f"no section {name} in {self.text}"
        return Shown(200, found[0], {}).text


class Visit:
    """A session of a browser; log in first."""

    def __init__(self, app: FastAPI, client: TestClient) -> None:
        self.client = client
        self.services: Services = app.state.services
        client.follow_redirects = False

    def log_in(self, *scopes: Scope) -> str:
        """The actor, as the audit log names it."""
        self.client.headers.pop("Authorization", None)
        self.client.cookies.clear()
        made = self.services.access.create("ops", frozenset(scopes), actor="cli")
        reply = self.client.post("/dashboard/login", data={"key": made.token}, headers=OWN)
        assert reply.status_code == 303, reply.text
        return f"key:{made.key.key_id}"

    def get(self, path: str, **query: str) -> Shown:
        asked = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
        return self._shown(self.client.get(path + (f"?{asked}" if asked else "")))

    def read(self, path: str, **query: str) -> Shown:
        """A page that is there."""
        shown = self.get(path, **query)
        assert shown.status == 200, shown.text
        return shown

    def post(self, path: str, **fields: str) -> Shown:
        csrf = re.search(r'name="csrf" value="(\w+)"', self.client.get("/dashboard").text)
        assert csrf is not None
        return self._shown(self.client.post(path, data={"csrf": csrf[1]} | fields, headers=OWN))

    @staticmethod
    def _shown(reply: Any) -> Shown:
        return Shown(reply.status_code, reply.text, dict(reply.headers))
