"""Every deed leaves a row that names who and by which request; a new admin route without one fails here."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from service.access.endpoints import Require
from service.access.schemas import Scope
from service.access.service import AccessService
from service.audit import repository
from service.audit.refusals import READS, Audited, AuditedReading
from service.dashboard.visitors import admin as dashboard_admin
from service.kit.clock import Clock
from service.kit.db import Database
from service.kit.rates import Rates
from service.settings import Settings
from tests import worlds
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock

Entry = dict[str, object]
OWN = {"Origin": "http://testserver"}


class Stage:
    def __init__(self, client: TestClient, shelf: Shelf, clock: Clock) -> None:
        self.client, self.shelf, self.database, self.clock = client, shelf, shelf.database, clock

    def entries(self) -> list[Entry]:
        """Newest first."""
        with self.database.read() as connection:
            return [dict(entry) for entry in repository.page(connection, limit=100, before=None)]


def promote(stage: Stage) -> None:
    version = stage.shelf.adapter(stage.shelf.active_base(), 0.1)
    stage.client.post(f"/v1/admin/adapters/{version}/promote").raise_for_status()


def roll_back(stage: Stage) -> None:
    promote(stage)
    stage.client.post("/v1/admin/adapters/rollback").raise_for_status()


def close_window(stage: Stage) -> None:
    worlds.send(stage.database, stage.clock, [worlds.event("e", "u", "i", worlds.START)])
    stage.client.post("/v1/admin/windows/close").raise_for_status()


def _by_form(stage: Stage, action: str, version: str, revision: int, **fields: str) -> None:
    token = stage.client.headers["Authorization"].removeprefix("Bearer ")
    stage.client.post("/dashboard/login", data={"key": token}, headers=OWN)
    csrf = stage.client.get("/dashboard").text.partition('name="csrf" value="')[2].partition('"')[0]
    form = fields or {"version": version, "confirmation": version, "revision": str(revision)}
    form = {"csrf": csrf} | form
    assert stage.client.post(f"/dashboard/{action}", data=form, headers=OWN).status_code == 200


def promote_by_form(stage: Stage) -> None:
    _by_form(stage, "promote", stage.shelf.adapter(stage.shelf.active_base(), 0.1), 1)


def roll_back_by_form(stage: Stage) -> None:
    promote(stage)
    _by_form(stage, "rollback", "base", 2)


def compare_by_form(stage: Stage) -> None:
    version = stage.shelf.adapter(stage.shelf.active_base(), 0.1)
    _by_form(stage, f"adapters/{version}/compare", version, 1, users="u")


def try_candidate(stage: Stage) -> None:
    version = stage.shelf.adapter(stage.shelf.active_base(), 0.1)
    wanted = {"adapter_version": version, "kind": "canary", "share": 0.1}
    stage.client.put("/v1/admin/trial", json=wanted).raise_for_status()


def end_trial(stage: Stage) -> None:
    try_candidate(stage)
    stage.client.delete("/v1/admin/trial").raise_for_status()


def export(stage: Stage) -> None:
    stage.client.get("/v1/users/u/export").raise_for_status()


def erase(stage: Stage) -> None:
    stage.client.delete("/v1/users/u").raise_for_status()


DEEDS: dict[str, tuple[Callable[[Stage], None], str]] = {
    "POST /v1/admin/adapters/rollback": (roll_back, "adapter.rollback"),
    "POST /v1/admin/adapters/{version}/promote": (promote, "adapter.promote"),
    "POST /v1/admin/windows/close": (close_window, "window.close"),
    "PUT /v1/admin/trial": (try_candidate, "trial.start"),
    "DELETE /v1/admin/trial": (end_trial, "trial.end"),
    "GET /v1/users/{user_id:path}/export": (export, "user.export"),
    "DELETE /v1/users/{user_id:path}": (erase, "user.erase"),
    "POST /dashboard/promote": (promote_by_form, "adapter.promote"),
    "POST /dashboard/adapters/{version}/compare": (compare_by_form, "adapter.compare"),
    "POST /dashboard/rollback": (roll_back_by_form, "adapter.rollback"),
}
"""Each state-changing route of the admin scope, and each other that is audited: how to use it well, and its row."""


def calls(dependant: Dependant) -> Iterator[object]:
    yield dependant.call
    for needed in dependant.dependencies:
        yield from calls(needed)


def routes(app: FastAPI) -> Iterator[APIRoute]:
    from fastapi.routing import iter_route_contexts

    for context in iter_route_contexts(app.routes):
        if isinstance(context.original_route, APIRoute):
            yield context.original_route


def admin_deeds(app: FastAPI) -> dict[str, APIRoute]:
    found = {}
    for route in routes(app):
        needs = set(calls(route.dependant)) - {route.endpoint}
        as_admin = not route.methods <= READS and needs & {Require(Scope.ADMIN), dashboard_admin}
        is_deed = isinstance(route, AuditedReading) or (type(route) is Audited and not route.methods <= READS)
        if as_admin or is_deed:
            for method in route.methods:
                found[f"{method} {route.path}"] = route
    return found


@pytest.fixture
def stage(admin: TestClient, tmp_path: Path, database: Database, clock: SetClock, settings: Settings) -> Stage:
    shelf = Shelf(tmp_path, database, clock)
    shelf.artifacts.root = settings.artifacts_dir
    return Stage(admin, shelf, clock)


def test_every_route_that_changes_something_as_an_admin_is_known_here_and_audited(app: FastAPI) -> None:
    found = admin_deeds(app)
    assert found.keys() == DEEDS.keys(), "say in DEEDS how the route is used and which row it leaves"
    assert all(isinstance(route, Audited) for route in found.values())
    assert all(isinstance(route, AuditedReading) for route in found.values() if route.methods <= READS)


@pytest.mark.parametrize("deed", DEEDS)
def test_the_deed_leaves_a_row_with_its_actor_and_its_request(stage: Stage, deed: str) -> None:
    do, action = DEEDS[deed]
    stage.client.headers["X-Request-ID"] = "the-one-asked-about"
    do(stage)
    key_id = stage.client.headers["Authorization"].split("_")[1]
    [row] = [entry for entry in stage.entries() if entry["action"] == action]
    assert (row["actor"], row["request_id"]) == (f"key:{key_id}", "the-one-asked-about")


def test_what_is_refused_leaves_a_row_as_well(app: FastAPI, stage: Stage) -> None:
    version = stage.shelf.adapter(stage.shelf.active_base(), 0.1)
    access: AccessService = app.state.services.access
    writer = access.create("shop", frozenset({Scope.WRITE}), actor="cli")
    headers = {"Authorization": f"Bearer {writer.token}", "X-Request-ID": "not-allowed"}
    path = f"/v1/admin/adapters/{version}/promote"
    assert stage.client.post(path, headers=headers).status_code == 403
    stale = {"If-Match": '"7"', "X-Request-ID": "too-late"}
    assert stage.client.post(path, headers=stale).status_code == 412
    assert stage.client.post("/v1/admin/adapters/a-none/promote").status_code == 404
    assert stage.client.post("/v1/admin/windows/close").status_code == 409
    refused = [entry for entry in reversed(stage.entries()) if entry["action"] == "admin.refused"]
    assert [entry["details"]["status"] for entry in refused] == [403, 412, 404, 409]  # type: ignore[index]
    assert [entry["subject"] for entry in refused] == [version, version, "a-none", None]
    assert (refused[0]["actor"], refused[0]["request_id"]) == (f"key:{writer.key.key_id}", "not-allowed")
    assert refused[1]["request_id"] == "too-late"


def test_reading_and_strangers_leave_none_and_nobody_fills_the_log_by_being_refused(app: FastAPI, stage: Stage) -> None:
    access: AccessService = app.state.services.access
    reader = {"Authorization": f"Bearer {access.create('r', frozenset({Scope.READ}), actor='cli').token}"}
    before = len(stage.entries())
    assert stage.client.get("/v1/admin/windows", headers=reader).status_code == 403
    assert stage.client.post("/v1/admin/windows/close", headers={"Authorization": "Bearer x"}).status_code == 401
    assert len(stage.entries()) == before
    app.state.services.refusals._rates = Rates(0.001, 5)  # on a slow machine this takes a while
    for _ in range(9):
        assert stage.client.post("/v1/admin/windows/close", headers=reader).status_code == 403
    assert len(stage.entries()) - before == 5


def test_who_may_not_see_or_erase_all_that_is_held_on_a_person_leaves_a_row_without_the_person(
    app: FastAPI, stage: Stage
) -> None:
    access: AccessService = app.state.services.access
    reader = access.create("r", frozenset({Scope.READ}), actor="cli")
    headers = {"Authorization": f"Bearer {reader.token}", "X-Request-ID": "curious"}
    assert stage.client.get("/v1/users/somebody/export", headers=headers).status_code == 403
    assert stage.client.delete("/v1/users/somebody", headers=headers).status_code == 403
    assert stage.client.get("/v1/users/somebody/events", headers=headers).status_code == 200
    rows = [row for row in stage.entries() if row["request_id"] == "curious"]
    assert {(row["actor"], row["action"]) for row in rows} == {(f"key:{reader.key.key_id}", "admin.refused")}
    assert [row["details"]["route"] for row in reversed(rows)] == [  # type: ignore[index]
        "GET /v1/users/{user_id:path}/export",
        "DELETE /v1/users/{user_id:path}",
    ]
    assert "somebody" not in str(rows)


def test_a_body_that_is_wrong_is_no_refused_deed(stage: Stage) -> None:
    before = len(stage.entries())
    for body in (b"{", b'{"to_version": 1}', b" " * 20_000):
        reply = stage.client.post(
            "/v1/admin/adapters/rollback", content=body, headers={"Content-Type": "application/json"}
        )
        assert reply.status_code in (413, 422)
    assert len(stage.entries()) == before


def test_refusals_beyond_the_rate_are_counted_in_the_next_row(app: FastAPI, stage: Stage) -> None:
    access, refusals = app.state.services.access, app.state.services.refusals
    first, second = (
        {"Authorization": f"Bearer {access.create(name, frozenset({Scope.READ}), actor='cli').token}"}
        for name in ("a", "b")
    )

    def refused(headers: dict[str, str]) -> None:
        assert stage.client.post("/v1/admin/windows/close", headers=headers).status_code == 403

    refusals._rates = Rates(0.001, 2)  # on a slow machine this takes a while
    for _ in range(6):
        refused(first)
    refusals._rates = Rates(0.001, 2)  # it has opened again
    for headers in (first, second, first):
        refused(headers)
    rows = [entry["details"] for entry in reversed(stage.entries()) if entry["action"] == "admin.refused"]
    assert [details.get("more_before", 0) for details in rows] == [0, 0, 4, 0, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize("version", ["x" * 300, "%00", "a%20b"])
def test_a_refusal_holds_no_text_of_its_caller(app: FastAPI, client: TestClient, version: str) -> None:
    access = app.state.services.access
    reader = {"Authorization": f"Bearer {access.create('r', frozenset({Scope.READ}), actor='cli').token}"}
    assert client.post(f"/v1/admin/adapters/{version}/promote", headers=reader).status_code == 403
    with app.state.services.database.read() as connection:
        newest, *_ = repository.page(connection, limit=1, before=None)
    assert (newest["action"], newest["subject"]) == ("admin.refused", None)
