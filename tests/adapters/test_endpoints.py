"""The registry over HTTP: revisions as ETags, idempotency keys, and clear refusals."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.access.schemas import Scope
from service.kit.db import Database
from service.settings import Settings
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock

PATH = "/v1/admin/adapters"


@pytest.fixture
def shelf(tmp_path: Path, database: Database, clock: SetClock, settings: Settings) -> Shelf:
    shelf = Shelf(tmp_path, database, clock)
    shelf.artifacts.root = settings.artifacts_dir
    return shelf


def test_an_empty_registry_is_shown(admin: TestClient) -> None:
    reply = admin.get(PATH)
    assert reply.status_code == 200
    assert reply.headers["ETag"] == '"0"'
    assert reply.json() == {
        "active": {"revision": 0, "base_id": None, "adapter_version": None},
        "adapters": [],
        "next_before": None,
    }


def test_a_promotion_and_a_rollback_as_the_contract_says(admin: TestClient, shelf: Shelf) -> None:
    base = shelf.active_base()
    first, second = shelf.adapter(base, 0.1), shelf.adapter(base, 0.2)
    reply = admin.post(f"{PATH}/{first}/promote", headers={"If-Match": '"1"'}, json={"reason": "first"})
    assert reply.status_code == 200
    assert reply.json().keys() == {"from_version", "to_version", "revision", "audit_id"}
    assert admin.post(f"{PATH}/{second}/promote", headers={"If-Match": "*"}).json()["revision"] == 3
    back = admin.post(f"{PATH}/rollback").json()
    assert (back["from_version"], back["to_version"], back["revision"]) == (second, first, 4)
    assert admin.post(f"{PATH}/rollback", json={"to_version": "base"}).json()["to_version"] is None
    assert admin.get(PATH).headers["ETag"] == '"5"'
    audit = admin.get("/v1/admin/audit").json()["entries"]
    assert back["audit_id"] in {entry["audit_id"] for entry in audit}


def test_one_adapter_is_shown_with_its_moves(admin: TestClient, shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    admin.post(f"{PATH}/{version}/promote")
    shown = admin.get(f"{PATH}/{version}")
    assert shown.headers["ETag"] == '"2"'
    assert (shown.json()["active"], shown.json()["state"]) == (True, "active")
    assert [move["action"] for move in shown.json()["history"]] == ["promote"]


def test_a_stale_revision_is_412_and_its_repetition_with_the_same_key_is_answered(
    admin: TestClient, shelf: Shelf
) -> None:
    base = shelf.active_base()
    first, second = shelf.adapter(base, 0.1), shelf.adapter(base, 0.2)
    headers = {"If-Match": '"1"', "Idempotency-Key": "k-1"}
    done = admin.post(f"{PATH}/{first}/promote", headers=headers)
    assert admin.post(f"{PATH}/{second}/promote", headers={"If-Match": '"1"'}).status_code == 412
    again = admin.post(f"{PATH}/{first}/promote", headers=headers)
    assert (again.status_code, again.json()) == (200, done.json())
    other = admin.post(f"{PATH}/{second}/promote", headers=headers)
    assert (other.status_code, other.json()["slug"]) == (409, "conflict")


@pytest.mark.parametrize("if_match", ["1", 'W/"1"', '"one"', '""', '"1", "2"', '"-1"', '"99999999999999"'])
def test_a_malformed_precondition_is_422(admin: TestClient, shelf: Shelf, if_match: str) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    reply = admin.post(f"{PATH}/{version}/promote", headers={"If-Match": if_match})
    assert reply.status_code == 422
    assert reply.json()["errors"][0]["pointer"] == "/header/If-Match"


@pytest.mark.parametrize("body", [{"to_version": "latest"}, {"to_version": 7}, {"to": "base"}, [], "base"])
def test_a_malformed_rollback_is_422(admin: TestClient, shelf: Shelf, body: object) -> None:
    shelf.active_base()
    assert admin.post(f"{PATH}/rollback", json=body).status_code == 422


def test_refusals_are_clear(admin: TestClient, shelf: Shelf) -> None:
    assert admin.get(f"{PATH}/a000001-000000000000").status_code == 404
    assert admin.post(f"{PATH}/a000001-000000000000/promote").status_code == 404
    assert admin.post(f"{PATH}/rollback").status_code == 409
    version = shelf.adapter(shelf.active_base(), 0.1)
    shelf.damage(version)
    reply = admin.post(f"{PATH}/{version}/promote")
    assert reply.status_code == 409
    assert "adaptide adapters verify" in reply.json()["detail"]
    assert admin.get(f"{PATH}/{version}").json()["state"] == "corrupt"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", PATH),
        ("GET", f"{PATH}/a000001-000000000000"),
        ("POST", f"{PATH}/a000001-000000000000/promote"),
        ("POST", f"{PATH}/rollback"),
    ],
)
def test_only_admins_may(app: FastAPI, client: TestClient, method: str, path: str) -> None:
    assert client.request(method, path).status_code == 401
    key = app.state.services.access.create("reader", frozenset({Scope.READ, Scope.WRITE}), actor="cli")
    headers = {"Authorization": f"Bearer {key.token}"}
    assert client.request(method, path, headers=headers).status_code == 403
