"""The trial over HTTP and by command: its own revision as ETag, idempotency keys, clear refusals."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.access.schemas import Scope
from service.kit.db import Database
from service.settings import Settings
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock

PATH = "/v1/admin/trial"


@pytest.fixture
def shelf(tmp_path: Path, database: Database, clock: SetClock, settings: Settings) -> Shelf:
    shelf = Shelf(tmp_path, database, clock)
    shelf.artifacts.root = settings.artifacts_dir
    return shelf


def test_there_is_no_trial_at_first(admin: TestClient) -> None:
    reply = admin.get(PATH)
    assert (reply.status_code, reply.headers["ETag"]) == (200, '"0"')
    assert reply.json() == {
        "revision": 0,
        "trial": None,
        "here": {"loaded": None, "trouble": None},
        "history": [],
    }


def test_one_is_started_changed_and_ended(admin: TestClient, shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    wanted = {"adapter_version": version, "kind": "shadow", "share": 0.05, "reason": "first look"}
    started = admin.put(PATH, json=wanted, headers={"If-Match": '"0"'})
    assert started.status_code == 200, started.text
    assert (started.json()["revision"], started.json()["deed"]) == (1, "start")
    changed = admin.put(PATH, json=wanted | {"kind": "canary", "share": 0.2}, headers={"If-Match": '"1"'})
    assert (changed.json()["deed"], changed.json()["trial"]["share"]) == ("change", 0.2)
    shown = admin.get(PATH)
    assert shown.headers["ETag"] == '"2"'
    assert shown.json()["trial"]["kind"] == "canary"
    assert [move["reason"] for move in shown.json()["history"]] == ["first look", "first look"]
    ended = admin.delete(PATH, params={"reason": "seen enough"}, headers={"If-Match": '"2"', "Idempotency-Key": "k"})
    assert (ended.json()["trial"], ended.json()["revision"]) == (None, 3)
    again = admin.delete(PATH, params={"reason": "seen enough"}, headers={"If-Match": '"2"', "Idempotency-Key": "k"})
    assert again.json() == ended.json()
    assert admin.get(PATH).json()["history"][0]["because"] == "asked"


@pytest.mark.parametrize(
    "change",
    [
        {"share": 0},
        {"share": 1.01},
        {"share": True},
        {"share": "0.1"},
        {"kind": "both"},
        {"adapter_version": "base"},
        {"ends_at": "2026-03-01T12:00:00"},
        {"ends_at": 1772366400},
        {"ends_at": "1772366400"},
        {"salt": "mine"},
    ],
)
def test_a_wrong_request_is_422(admin: TestClient, shelf: Shelf, change: dict[str, object]) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    wanted: dict[str, object] = {"adapter_version": version, "kind": "canary", "share": 0.1}
    assert admin.put(PATH, json=wanted | change).status_code == 422


def test_a_stale_revision_is_412_an_unknown_adapter_404_and_no_trial_409(admin: TestClient, shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    wanted = {"adapter_version": version, "kind": "canary", "share": 0.1}
    assert admin.put(PATH, json=wanted, headers={"If-Match": '"7"'}).status_code == 412
    assert admin.put(PATH, json=wanted | {"adapter_version": "a000099-000000000000"}).status_code == 404
    assert admin.delete(PATH).status_code == 409
    for ends_at in ("2020-03-01T12:00:00Z", "9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00"):
        assert admin.put(PATH, json=wanted | {"ends_at": ends_at}).status_code == 409
    until = admin.put(PATH, json=wanted | {"ends_at": "2026-03-02T12:00:00+02:00"}).json()["trial"]["ends_at"]
    assert until == "2026-03-02T10:00:00Z"
    admin.delete(PATH).raise_for_status()
    assert admin.delete(PATH, params={"reason": "x" * 501}).status_code == 422


def test_where_no_second_model_has_room_it_is_refused_with_the_reason(
    app: FastAPI, admin: TestClient, shelf: Shelf
) -> None:
    """As an engine with captured searches on a GPU says."""
    version = shelf.adapter(shelf.active_base(), 0.1)

    class Full:
        no_second = "both slots are needed"

    app.state.services.no_second.__self__._engine = Full()
    reply = admin.put(PATH, json={"adapter_version": version, "kind": "canary", "share": 0.1})
    assert (reply.status_code, reply.json()["detail"]) == (409, "both slots are needed")


def test_only_admins_may(app: FastAPI, client: TestClient) -> None:
    assert client.get(PATH).status_code == 401
    key = app.state.services.access.create("reader", frozenset({Scope.READ, Scope.WRITE}), actor="cli")
    headers = {"Authorization": f"Bearer {key.token}"}
    assert client.get(PATH, headers=headers).status_code == 403
    assert client.delete(PATH, headers=headers).status_code == 403
