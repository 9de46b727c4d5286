"""Windows over HTTP."""

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.access.schemas import Scope
from service.kit.db import Database
from service.kit.lease_keeper import held
from service.settings import Settings
from service.windows import service
from tests.conftest import SetClock
from tests.windows.streams import write_events

PATH = "/v1/admin/windows"


def test_a_window_is_closed_and_listed_newest_first(admin: TestClient, database: Database) -> None:
    for count in (3, 2):
        write_events(database, count)
        reply = admin.post(f"{PATH}/close")
        assert (reply.status_code, reply.json()["events"], reply.json()["state"]) == (200, count, "sealed")
    write_events(database, 1)
    listed = admin.get(PATH).json()
    assert [window["events"] for window in listed["windows"]] == [2, 3]
    assert listed["windows"][0]["after_seq"] == listed["windows"][1]["through_seq"]
    assert (listed["open"]["events"], listed["open"]["after_seq"]) == (1, listed["windows"][0]["through_seq"])
    assert listed["windows"][0]["evaluations"] == []


def test_a_failed_window_says_why_and_when_it_is_tried_again(
    admin: TestClient, database: Database, settings: Settings, clock: SetClock
) -> None:
    write_events(database, 1)
    admin.post(f"{PATH}/close")
    seen = []
    for _ in range(settings.window_attempts):
        with held(database, service.UPDATER_LEASE, "me", settings.lease_duration) as lease:
            assert lease is not None
            assert service.claim(database, clock, settings, lease, at_once=True) is not None
            service.fail(database, clock, settings, 1, lease, "the disk is full")
        seen.append(admin.get(PATH).json()["windows"][0])
    assert {(window["state"], window["reason"]) for window in seen} == {("failed", "the disk is full")}
    assert [window["attempts"] for window in seen] == [1, 2, 3]
    waits = [clock() + settings.window_retry_pause * times for times in (1, 2)]
    assert [window["next_attempt_at"] for window in seen] == [
        *(wait.isoformat().replace("+00:00", "Z") for wait in waits),
        None,
    ]


def test_windows_are_paged(admin: TestClient, database: Database) -> None:
    for _ in range(3):
        write_events(database, 1)
        admin.post(f"{PATH}/close")
    first = admin.get(PATH, params={"limit": 2}).json()
    second = admin.get(PATH, params={"limit": 2, "before": first["next_before"]}).json()
    ids = [window["window_id"] for page in (first, second) for window in page["windows"]]
    assert (ids, second["next_before"]) == ([3, 2, 1], None)


def test_closing_an_empty_window_is_a_clear_conflict(admin: TestClient) -> None:
    reply = admin.post(f"{PATH}/close")
    assert (reply.status_code, reply.json()["slug"]) == (409, "conflict")
    assert "nothing to close" in reply.json()["detail"]


@pytest.mark.parametrize(("method", "path"), [("GET", PATH), ("POST", f"{PATH}/close")])
def test_only_admins_may(app: FastAPI, client: TestClient, method: str, path: str) -> None:
    assert client.request(method, path).status_code == 401
    key = app.state.services.access.create("reader", frozenset({Scope.READ, Scope.WRITE}), actor="cli")
    headers = {"Authorization": f"Bearer {key.token}"}
    assert client.request(method, path, headers=headers).status_code == 403
