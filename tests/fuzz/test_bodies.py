"""Whatever is sent to whatever address: an answer that is no server error, and a problem where it is refused."""

import json
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from service.catalog.schemas import Item
from service.catalog.service import get_item, put_items
from service.http.problems import MEDIA_TYPE
from service.kit.db import Database
from tests.conftest import SetClock
from tests.fuzz.inputs import any_json, any_text, edited, encodable_json, fuzz

EVENT = {"event_id": "e", "user_id": "u", "item_id": "i", "event_type": "click", "occurred_at": "2026-03-01T11:00:00Z"}
ITEM = {"item_id": "i", "title": "Red", "categories": ["A"], "brand": None, "description": "d", "available": True}
BODIES: dict[str, Any] = {
    "POST /v1/events": {"events": [EVENT]},
    "PUT /v1/items": {"items": [ITEM]},
    "POST /v1/recommendations": {"user_id": "u", "limit": 5},
    "POST /v1/adapters/promote": {"adapter_version": "a000001-000000000000", "reason": "r"},
    "POST /v1/windows/close": {},
}
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=30)


@pytest.fixture
def routes(app: FastAPI) -> list[tuple[str, str]]:
    """(method, path) of every operation that takes a body."""
    found = app.openapi()["paths"]
    return [
        (method.upper(), path) for path, ways in found.items() for method, way in ways.items() if "requestBody" in way
    ]


@st.composite
def bodies(draw: st.DrawFn, right: Any) -> bytes:
    if isinstance(right, dict) and draw(st.booleans()):
        changes = draw(st.dictionaries(st.sampled_from([*right, "x"]), any_json, max_size=2))
        return json.dumps(right | changes).encode()
    return draw(edited(json.dumps(right).encode()) | any_json.map(json.dumps).map(str.encode) | st.binary(max_size=60))


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@fuzz(150)
@given(data=st.data())
def test_any_body_gets_an_answer(admin: TestClient, routes: list[tuple[str, str]], data: st.DataObject) -> None:
    method, path = data.draw(st.sampled_from(sorted(routes)))
    body = data.draw(bodies(BODIES.get(f"{method} {path}", {"reason": "r"})))
    kind = data.draw(
        st.sampled_from(
            ["application/json", "application/json; charset=utf-16", "text/plain", "", "multipart/form-data"]
        )
    )
    address = path.replace("{", "").replace("}", "")
    answer = admin.request(method, address, content=body, headers={"Content-Type": kind, "If-Match": '"0"'})
    assert answer.status_code < 500 or answer.status_code == 503, (method, path, body)
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == MEDIA_TYPE
        assert answer.json()["detail"]


items = st.fixed_dictionaries(
    {"item_id": st.just("i") | any_text, "title": texts | any_text},
    optional={
        "categories": st.lists(texts | any_text, max_size=3) | any_json,
        "brand": st.none() | any_text,
        "description": st.none() | any_text,
        "available": st.booleans() | any_json,
        "more": any_json,
    },
)


@fuzz(25)
@given(sent=items | encodable_json)
@example(sent={"item_id": "\ud800", "title": "a"})
@example(sent={"item_id": "i", "title": "\x00"})
@example(sent={"item_id": "i", "title": "a", "categories": ["\ud83d"]})
def test_any_item_is_kept_as_it_is_or_refused(database: Database, clock: SetClock, sent: Any) -> None:
    try:
        item = Item.model_validate(sent)
    except ValueError:
        return
    put_items(database, clock, [item])
    kept = get_item(database, item.item_id)
    assert Item.model_validate({name: getattr(kept, name) for name in Item.model_fields}) == item
