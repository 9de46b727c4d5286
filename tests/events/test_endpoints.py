"""The routes over HTTP, with real keys and both stores."""

import json
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

GOOD: dict[str, Any] = {
    "event_id": "e1",
    "user_id": "u1",
    "item_id": "i1",
    "event_type": "click",
    "occurred_at": "2026-03-01T11:00:00Z",
}


def post(client: TestClient, *events: Any, **parameters: Any) -> Any:
    return client.post("/v1/events", content=json.dumps({"events": events}), params=parameters)


def test_events_are_taken_and_judged_one_by_one(admin: TestClient) -> None:
    reply = post(admin, GOOD, GOOD, GOOD | {"event_id": "e2", "position": -1}, GOOD | {"user_id": "u2"})
    assert reply.status_code == 202
    body = reply.json()
    assert (body["accepted"], body["duplicates"], body["unknown_items"]) == (1, 1, 1)
    assert [(r["index"], r["event_id"], r["code"]) for r in body["rejected"]] == [
        (2, "e2", "invalid_event"),
        (3, "e1", "event_id_conflict"),
    ]


def test_a_rehearsal_stores_nothing(admin: TestClient) -> None:
    assert post(admin, GOOD, validate_only="true").json()["accepted"] == 1
    assert post(admin, GOOD).json()["accepted"] == 1


def test_text_that_json_or_a_store_cannot_carry_rejects_only_its_event(admin: TestClient) -> None:
    surrogate, nul = GOOD | {"user_id": "\ud800"}, GOOD | {"event_id": "e2", "properties": {"a": "\x00"}}
    strange = GOOD | {"\udfff": 1, "event_id": "\ud800"}
    body = post(admin, surrogate, nul, strange, GOOD).json()
    assert body["accepted"] == 1
    assert [r["code"] for r in body["rejected"]] == ["invalid_event"] * 3
    assert [r["event_id"] for r in body["rejected"]] == ["e1", "e2", None]


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        (b"", "", "json_invalid"),
        (b"{", "", "json_invalid"),
        (b"\xff\xfe\xfd", "", "json_invalid"),
        (b'{"events": ' + b"1" * 5000 + b"}", "", "json_invalid"),
        (b"[" * 10_000 + b"]" * 10_000, "", "json_invalid"),
        (b'{"events": ' * 10_000 + b"1" + b"}" * 10_000, "", "json_invalid"),
        (b"[]", "", "object_type"),
        (b"{}", "/events", "missing"),
        (b'{"events": {}}', "/events", "list_type"),
        (b'{"events": []}', "/events", "too_short"),
        (b'{"events": [' + b"1," * 500 + b"1]}", "/events", "too_long"),
        (b'{"events": [1], "more": 1}', "/more", "extra_forbidden"),
        (b'{"events": [1], "\\ud800": 1}', "/\\ud800", "extra_forbidden"),
    ],
)
def test_a_body_of_another_shape_is_refused_as_a_whole(admin: TestClient, body: bytes, pointer: str, code: str) -> None:
    reply = admin.post("/v1/events", content=body)
    assert reply.status_code == 422
    assert reply.headers["content-type"] == "application/problem+json"
    assert [(e["pointer"], e["code"]) for e in reply.json()["errors"]] == [(pointer, code)]


def test_a_nul_in_the_path_is_refused(admin: TestClient) -> None:
    reply = admin.get("/v1/users/%00/events")
    assert reply.status_code == 422
    assert reply.json()["errors"][0]["pointer"] == "/path/user_id"


@pytest.mark.parametrize("user", ["u1", "a/b", "a/events", "..x", "50% off?#", "Zoë 😀", "x" * 128])
def test_a_users_events_are_read_and_erased_whatever_the_id_looks_like(admin: TestClient, user: str) -> None:
    post(admin, GOOD | {"user_id": user}, GOOD | {"event_id": "e2", "user_id": "somebody else"})
    path = "/v1/users/" + quote(user, safe="")
    assert [e["event_id"] for e in admin.get(f"{path}/events").json()["events"]] == ["e1"]
    assert admin.delete(path).json() == {"events": 1, "recommendations": 0}
    assert admin.get(f"{path}/events").json() == {"events": [], "next_before_seq": None}
    assert len(admin.get("/v1/users/somebody else/events").json()["events"]) == 1


def test_a_history_pages(admin: TestClient) -> None:
    post(admin, GOOD, GOOD | {"event_id": "e2"}, GOOD | {"event_id": "e3"})
    first = admin.get("/v1/users/u1/events", params={"limit": 2}).json()
    rest = admin.get("/v1/users/u1/events", params={"limit": 2, "before_seq": first["next_before_seq"]}).json()
    assert [e["event_id"] for e in first["events"] + rest["events"]] == ["e3", "e2", "e1"]
    assert rest["next_before_seq"] is None


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "limit=x", "before_seq=0", f"before_seq={2**63}"])
def test_a_wrong_parameter_is_named(admin: TestClient, query: str) -> None:
    reply = admin.get(f"/v1/users/u1/events?{query}")
    assert reply.status_code == 422
    assert reply.json()["errors"][0]["pointer"] == "/query/" + query.partition("=")[0]


def test_the_documentation_shows_the_events_body(admin: TestClient) -> None:
    schema = admin.get("/openapi.json").json()
    body = schema["paths"]["/v1/events"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/EventBatch"}
    assert "occurred_at" in schema["components"]["schemas"]["Event"]["properties"]
