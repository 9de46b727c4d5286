"""Files of the dashboard: what was vendored is what was published, and browsers may keep what cannot change."""

import gzip
import hashlib
import json
import re
from pathlib import Path

from starlette.testclient import TestClient

import service.dashboard
from service.dashboard.assets import ASSETS, static_url

STATIC = Path(service.dashboard.__file__).parent / "static"
MANIFEST = json.loads((STATIC / "vendor" / "manifest.json").read_text())


def test_vendored_files_are_those_of_the_manifest_each_with_its_licence() -> None:
    held = {path.name for path in (STATIC / "vendor").iterdir()} - {"manifest.json"}
    assert held == set(MANIFEST)
    for name, entry in MANIFEST.items():
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == entry["sha256"], name
        assert re.fullmatch(r"\d+\.\d+\.\d+", entry["version"])
        if not name.endswith(".LICENSE"):
            assert MANIFEST[entry["licence_file"]]["version"] == entry["version"]


def test_nothing_is_fetched_from_elsewhere() -> None:
    for path in [*STATIC.glob("*"), *(STATIC.parent / "templates").glob("*")]:
        if path.is_file():
            addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", path.read_text()))
            assert addresses <= {"http://www.w3.org/2000/svg"}, path


def test_a_hashed_name_may_be_kept_for_ever_and_a_plain_one_is_asked_for_anew(client: TestClient) -> None:
    hashed = client.get(static_url("dashboard.css"))
    assert hashed.status_code == 200
    assert hashed.headers["Content-Type"].startswith("text/css")
    assert "immutable" in hashed.headers["Cache-Control"]
    plain = client.get("/dashboard/static/dashboard.css")
    assert plain.headers["Cache-Control"] == "public, no-cache"
    assert plain.content == hashed.content
    again = client.get("/dashboard/static/dashboard.css", headers={"If-None-Match": plain.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_files_travel_packed_to_whoever_can_unpack_them(client: TestClient) -> None:
    address = static_url("vendor/htmx.min.js")
    packed = client.get(address, headers={"Accept-Encoding": "gzip"})
    plain = client.get(address, headers={"Accept-Encoding": "identity"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.content == plain.content == ASSETS["vendor/htmx.min.js"].body
    assert len(gzip.compress(plain.content)) < len(plain.content) / 2
    assert packed.headers["Vary"] == "Accept-Encoding"


def test_what_is_no_file_of_the_dashboard_is_not_served(client: TestClient) -> None:
    for name in ("nothing.css", "../pages.py", "%2e%2e/pages.py", "vendor/manifest.json", ""):
        assert client.get(f"/dashboard/static/{name}").status_code == 404, name
