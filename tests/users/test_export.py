"""Everything that is held on a user comes out, line by line, and nothing of others."""

import stat
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient
from typer.testing import CliRunner

from service.access.schemas import Scope
from service.access.service import AccessService
from service.adapters import service as adapters
from service.adapters.repository import NewAdapter, NewBase
from service.adapters.states import AdapterState
from service.events.service import ingest
from service.events.tables import events
from service.kit.db import Database
from service.recommend.tables import recommendations
from service.settings import Settings
from service.tables import metadata
from service.users import export as exports
from service.users.service import erase_user
from service.windows import service as windows
from service.windows.states import SealedBecause
from tests.adapters.test_commands import _logging_is_put_back  # noqa: F401  # a command configures logging
from tests.conftest import SetClock
from tests.disks import no_room
from tests.events.test_service import TOLERANCE, event, send
from tests.users.test_erasure import recommendation, record
from trainer.cli import app as cli

WHO = "who/asks ü"
BASE = "b-0000000000000000"
USER_COLUMNS = {table.name for table in metadata.sorted_tables for c in table.columns if c.name == "user_id"}


def export(database: Database, settings: Settings, clock: SetClock, user: str = WHO) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in exports.export_user(database, settings, user, clock=clock, actor="cli")]


def of_kind(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] == kind]


def test_every_row_of_every_table_with_a_user_comes_out(
    database: Database, settings: Settings, clock: SetClock
) -> None:
    """Each column of each row; a new table with a user_id fails here until the export knows it."""
    named = recommendation(None, clock())
    send(database, event("1", user=WHO, value=0.5, properties={"a": [None]}), event("2", user="other"))
    send(database, event("3", user=WHO, recommendation_id=named["recommendation_id"], position=2))
    record(
        database, named, recommendation(None, clock()), recommendation(WHO, clock()), recommendation("other", clock())
    )

    lines = export(database, settings, clock)

    kind_of = {"events": "event", "recommendations": "recommendation"}
    assert USER_COLUMNS == set(kind_of)
    for name, kind in kind_of.items():
        table = metadata.tables[name]
        with database.read() as connection:
            held = connection.execute(sa.select(table).where(table.c.user_id == WHO)).mappings().all()
        found = [{k: v for k, v in line.items() if k != "kind"} for line in of_kind(lines, kind)]
        for row in held:
            assert orjson.loads(orjson.dumps(dict(row), option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS)) in found
    assert [line["event_id"] for line in of_kind(lines, "event")] == ["1", "3"]
    assert [line["user_id"] for line in of_kind(lines, "recommendation")] == [WHO, None]
    assert of_kind(lines, "recommendation")[1]["recommendation_id"] == named["recommendation_id"]
    assert of_kind(lines, "history") == [{"kind": "history", "latest": ["i", "i"], "seen": ["i"]}]
    assert [line["action"] for line in of_kind(lines, "audit")] == ["user.export"]
    assert lines[0] == {"kind": "user", "format": 1, "user_id": WHO, "exported_at": "2026-03-01T12:00:00Z"}
    expected = {"user": 1, "history": 1, "event": 2, "recommendation": 2, "audit": 1}
    assert lines[-1] == {"kind": "end", "lines": expected}


def test_a_stranger_has_a_first_and_a_last_line(database: Database, settings: Settings, clock: SetClock) -> None:
    send(database, event("1", user="other"))
    assert [line["kind"] for line in export(database, settings, clock)] == ["user", "audit", "end"]


def test_many_rows_come_page_by_page_each_once(
    database: Database, settings: Settings, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "PAGE", 3)
    nobodys = [recommendation(None, clock()) for _ in range(6)]
    record(database, *nobodys, *(recommendation(WHO, clock() + timedelta(seconds=n // 4)) for n in range(9)))
    sent = [event(f"{n}", user=WHO, minute=n // 4) for n in range(9)]
    sent += [event(f"n{n}", user=WHO, recommendation_id=row["recommendation_id"]) for n, row in enumerate(nobodys)]
    send(database, *sent)

    lines = export(database, settings, clock)

    with database.read() as connection:
        in_time = list(connection.scalars(sa.select(events.c.seq).order_by(events.c.occurred_at, events.c.seq)))
        ids = set(connection.scalars(sa.select(recommendations.c.recommendation_id)))
    assert [line["seq"] for line in of_kind(lines, "event")] == in_time
    made = [line["recommendation_id"] for line in of_kind(lines, "recommendation")]
    assert len(made) == 15
    assert set(made) == ids


def test_windows_and_models_that_may_have_learnt_from_the_user_are_named(
    database: Database, settings: Settings, clock: SetClock
) -> None:
    def close() -> int:
        clock.advance(minutes=1)
        window = windows.seal(database, clock, settings, SealedBecause.MANUAL)
        assert window is not None
        return window.window_id

    def adapter(version: str, base: str, parent: str | None, window: int | None) -> None:
        clock.advance(minutes=1)
        new = NewAdapter(version, base, "1" * 64, "peso", parent_version=parent, window_id=window)
        adapters.register_adapter(database, clock, new, AdapterState.PASSED)

    def take(*sent: dict[str, Any]) -> None:
        assert ingest(database, sent, clock=clock, clock_tolerance=TOLERANCE).accepted == len(sent)

    adapters.register_base(database, clock, NewBase(BASE, "0" * 64))
    clock.advance(minutes=1)
    take(event("other", user="other"))
    before = close()
    adapter("a1", BASE, None, before)
    take(event("1", user=WHO), event("2", user=WHO))
    own = close()
    adapter("a2", BASE, "a1", own)
    take(event("3", user="other"))
    after = close()
    adapter("a3", BASE, "a2", after)
    adapter("b1", BASE, "a1", None)
    take(event("4", user=WHO))  # in no window yet
    adapters.register_base(database, clock, NewBase("b-later", "2" * 64))
    adapter("c1", "b-later", None, None)

    lines = export(database, settings, clock)

    [window] = of_kind(lines, "window")
    assert (window["window_id"], window["events"], window["state"]) == (own, 2, "sealed")
    assert [line["base_id"] for line in of_kind(lines, "base")] == ["b-later"]
    through = {line["adapter_version"]: line["through"] for line in of_kind(lines, "adapter")}
    assert through == {"a2": "window", "a3": "parent", "c1": "base"}


def test_what_is_left_of_an_erased_user_is_the_mark_and_the_log(
    database: Database, settings: Settings, clock: SetClock
) -> None:
    send(database, event("1", user=WHO))
    erase_user(database, WHO, clock=clock, actor="key:k")
    lines = export(database, settings, clock)
    assert [line["kind"] for line in lines] == ["user", "audit", "audit", "erasure", "end"]
    assert [line["action"] for line in of_kind(lines, "audit")] == ["user.erase", "user.export"]
    assert of_kind(lines, "erasure")[0]["refused_through"] == "2026-03-01T12:00:00Z"


# Over HTTP


def key(database: Database, clock: SetClock, scope: Scope) -> dict[str, str]:
    made = AccessService(database, clock).create("tests", frozenset({scope}), actor="cli")
    return {"Authorization": f"Bearer {made.token}"}


def test_an_admin_reads_it_as_lines(database: Database, clock: SetClock, client: TestClient) -> None:
    send(database, event("1", user=WHO))
    reply = client.get("/v1/users/who/asks%20%C3%BC/export", headers=key(database, clock, Scope.ADMIN))
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert reply.headers["cache-control"] == "no-store"
    lines = [orjson.loads(line) for line in reply.content.splitlines()]
    assert [line["kind"] for line in lines] == ["user", "history", "event", "audit", "end"]
    assert of_kind(lines, "audit")[0]["actor"].startswith("key:")


@pytest.mark.parametrize("scope", [Scope.READ, Scope.WRITE])
def test_nobody_else_may(database: Database, clock: SetClock, client: TestClient, scope: Scope) -> None:
    assert client.get("/v1/users/u/export", headers=key(database, clock, scope)).status_code == 403
    assert client.get("/v1/users/u/export").status_code == 401


# By command


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, database_url: str, tmp_path: Path) -> None:
    monkeypatch.setenv("ADAPTIDE_DATABASE_URL", database_url)
    monkeypatch.setenv("ADAPTIDE_HOME", str(tmp_path / "home"))


@pytest.mark.usefixtures("environment")
def test_the_command_exports_into_a_new_file_for_its_owner_alone(database: Database, tmp_path: Path) -> None:
    send(database, event("1", user=WHO))
    out = tmp_path / "export.ndjson"
    done = CliRunner().invoke(cli, ["users", "export", WHO, "--out", str(out)])
    assert done.exit_code == 0, done.output
    lines = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert [line["kind"] for line in lines] == ["user", "history", "event", "audit", "end"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    again = CliRunner().invoke(cli, ["users", "export", WHO, "--out", str(out)])
    assert "name a new file" in str(again.exception)

    shown = CliRunner().invoke(cli, ["users", "export", WHO])
    assert orjson.loads(shown.stdout.splitlines()[-1])["kind"] == "end"


@pytest.mark.usefixtures("environment")
def test_an_export_that_fails_leaves_no_file(database: Database, tmp_path: Path) -> None:
    if database.dialect != "postgresql":
        pytest.skip("SQLite would have no room for the line in the audit log")
    send(database, *(event(str(number), user=WHO) for number in range(200)))
    folder = tmp_path / "out"
    folder.mkdir()
    with no_room():
        done = CliRunner().invoke(cli, ["users", "export", WHO, "--out", str(folder / "export.ndjson")])
    assert "cannot be written: File too large; make room there" in str(done.exception)
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("environment")
def test_the_command_erases_when_it_is_sure(database: Database) -> None:
    send(database, event("1", user=WHO))
    assert CliRunner().invoke(cli, ["users", "erase", WHO], input="n\n").exit_code == 1
    done = CliRunner().invoke(cli, ["users", "erase", WHO, "--yes", "--json"])
    assert done.exit_code == 0, done.output
    assert orjson.loads(done.stdout) == {"events": 1, "recommendations": 0}
    done = CliRunner().invoke(cli, ["users", "erase", WHO], input="y\n")
    assert "erased 0 events" in done.stdout
    wrong = CliRunner().invoke(cli, ["users", "erase", "a\x07b", "--yes"])
    assert "control character" in str(wrong.exception)
