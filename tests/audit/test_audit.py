"""The audit log grows, is read page by page, and cannot be changed."""

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.audit import repository
from service.audit.tables import audit_log
from service.kit.db import Database
from tests.conftest import SetClock


def append(database: Database, clock: SetClock, *subjects: str) -> None:
    with database.write() as connection:
        for subject in subjects:
            repository.append(connection, now=clock(), actor="cli", action="test.do", subject=subject, details={"a": 1})


def test_an_entry_goes_with_its_transaction(database: Database, clock: SetClock) -> None:
    def fail_after_writing() -> None:
        with database.write() as connection:
            repository.append(connection, now=clock(), actor="cli", action="test.do")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_after_writing()
    with database.read() as connection:
        assert repository.page(connection, limit=5, before=None) == []


def test_the_store_refuses_to_change_or_delete_an_entry(database: Database, clock: SetClock) -> None:
    append(database, clock, "one")
    for statement in (audit_log.update().values(actor="me"), audit_log.delete()):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), database.write() as connection:
            connection.execute(statement)


def test_pages_go_from_the_newest_to_the_oldest(app: FastAPI, admin: TestClient, clock: SetClock) -> None:
    append(app.state.services.database, clock, "one", "two", "three")
    first = admin.get("/v1/admin/audit", params={"limit": 2}).json()
    rest = admin.get("/v1/admin/audit", params={"limit": 2, "before": first["next_before"]}).json()
    assert [entry["subject"] for entry in first["entries"]] == ["three", "two"]
    assert [entry["action"] for entry in rest["entries"]] == ["test.do", "key.create"]
    assert rest["next_before"] is None


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "before=yesterday", "before=%00"])
def test_a_wrong_parameter_is_named(admin: TestClient, query: str) -> None:
    reply = admin.get(f"/v1/admin/audit?{query}")
    assert reply.status_code == 422
    assert reply.json()["errors"][0]["pointer"] == "/query/" + query.partition("=")[0]
