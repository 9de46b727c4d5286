"""The online half's commands: exit status, one clear line, JSON; `serve` as a real process."""

import json
import logging
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import structlog
from sqlalchemy.engine import make_url

from service.audit import repository as audit
from service.cli import app, run
from service.kit import migrate
from service.kit.db import Database
from tests.conftest import PostgresStore
from tests.serving import serving


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Adaptide = Callable[..., Done]


@pytest.fixture
def adaptide(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Adaptide]:
    """Runs a command to its end over this test's store, as the console script does but in this process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run_command(*arguments: str, **environment: str) -> Done:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["adaptide", *arguments])
            for name, value in {
                "ADAPTIDE_DATABASE_URL": database_url,
                "ADAPTIDE_HOME": str(tmp_path),
                **environment,
            }.items():
                patch.setenv(name, value)
            capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                run(app)
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    yield run_command
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def assert_refused(done: Done, *words: str, status: int = 1) -> None:
    assert done.returncode == status, done
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr


@pytest.mark.parametrize(
    ("url", "words"),
    [("nosuch://x", "no scheme that is known"), ("s3://", "no bucket"), ("s3://k:secret@b", "carries no credentials")],
)
def test_a_wrong_place_of_artifacts_is_one_line_before_anything_listens(
    adaptide: Adaptide, url: str, words: str
) -> None:
    done = adaptide("serve", "--port", "0", ADAPTIDE_ARTIFACTS_URL=url)
    assert_refused(done, "ADAPTIDE_ARTIFACTS_URL", words)
    assert "secret" not in done.stderr


def test_keys_are_made_listed_and_revoked(adaptide: Adaptide) -> None:
    made = json.loads(adaptide("keys", "create", "--name", "shop", "--scope", "read,write", "--json").stdout)
    assert (made["name"], made["scopes"]) == ("shop", ["read", "write"])
    assert made["token"].startswith(f"adp_{made['key_id']}_")
    plain = adaptide("keys", "create", "--name", "ops", "--scope", "read", "--scope", "admin", "--expires-in-days", "7")
    assert re.fullmatch(r"adp_\w+_\S+\n", plain.stdout)
    listed = adaptide("keys", "list", "--json")
    assert [key["name"] for key in json.loads(listed.stdout)["keys"]] == ["shop", "ops"]
    assert made["token"].split("_", 2)[2] not in listed.stdout
    assert "shop" in adaptide("keys", "list").stdout
    revoked = json.loads(adaptide("keys", "revoke", made["key_id"], "--json").stdout)
    assert revoked["revoked_at"] is not None


def test_a_key_is_rotated(adaptide: Adaptide) -> None:
    made = json.loads(adaptide("keys", "create", "--name", "shop", "--scope", "read,write", "--json").stdout)
    done = adaptide("keys", "rotate", made["key_id"], "--grace", "30m", "--json")
    rotated = json.loads(done.stdout)
    assert (rotated["name"], rotated["scopes"], rotated["replaces"]["key_id"]) == (
        "shop",
        ["read", "write"],
        made["key_id"],
    )
    assert rotated["replaces"]["replaced_by"] == rotated["key_id"]
    listed = json.loads(adaptide("keys", "list", "--json").stdout)["keys"]
    assert [key["replaced_by"] for key in listed] == [rotated["key_id"], None]
    plain = adaptide("keys", "rotate", rotated["key_id"])
    assert re.fullmatch(r"adp_\w+_\S+\n", plain.stdout)
    assert f"{rotated['key_id']} is refused from" in plain.stderr
    assert_refused(adaptide("keys", "rotate", made["key_id"]), rotated["key_id"])
    assert_refused(adaptide("keys", "rotate", made["key_id"], "--grace", "soon"), "soon", "1h", status=2)


def test_what_commands_do_to_keys_is_in_the_audit_log(adaptide: Adaptide, database: Database) -> None:
    made = json.loads(adaptide("keys", "create", "--name", "shop", "--scope", "read", "--json").stdout)["key_id"]
    successor = json.loads(adaptide("keys", "rotate", made, "--json").stdout)["key_id"]
    adaptide("keys", "revoke", successor)
    with database.read() as connection:
        entries = audit.page(connection, limit=9, before=None)
    assert [(entry["actor"], entry["action"], entry["subject"]) for entry in reversed(entries)] == [
        ("cli", "key.create", made),
        ("cli", "key.rotate", made),
        ("cli", "key.revoke", successor),
    ]


def test_wrong_keys_commands_are_one_clear_line(adaptide: Adaptide) -> None:
    unknown = adaptide("keys", "create", "--name", "x", "--scope", "root")
    assert_refused(unknown, "root", "read, write, admin", status=2)
    assert_refused(adaptide("keys", "create", "--name", " ", "--scope", "read"), "printable", status=2)
    assert_refused(adaptide("keys", "revoke", "nope"), "nope", "adaptide keys list")


def test_wrong_use_is_status_two(adaptide: Adaptide) -> None:
    assert adaptide("keys", "create").returncode == 2
    assert adaptide("serve", "--port", "70000").returncode == 2


@pytest.fixture
def postgres_url(_postgres: PostgresStore) -> str:
    return _postgres.url


COMMANDS = [("db", "check"), ("db", "upgrade"), ("serve", "--port", "0")]


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_database_that_cannot_be_had_is_one_clear_line_within_seconds(
    adaptide: Adaptide, arguments: tuple[str, ...], postgres_url: str
) -> None:
    there = make_url(postgres_url)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        port = silent.getsockname()[1]
        for change, *words in (
            ({"host": "127.0.0.1", "port": 1}, "did not answer", "ADAPTIDE_DATABASE_URL"),
            ({"host": "127.0.0.1", "port": port}, "timeout expired", "nothing answers there"),
            ({"database": "no_such_database"}, "no_such_database", "createdb"),
            ({"host": "no-such-host.invalid"}, "no such host"),
        ):
            wrong = there.set(**change).render_as_string(hide_password=False)
            started = time.monotonic()
            assert_refused(adaptide(*arguments, ADAPTIDE_DATABASE_URL=wrong), *words)
            assert time.monotonic() - started < 10


def test_the_schema_is_upgraded_and_checked(adaptide: Adaptide, database: Database) -> None:
    migrate.downgrade(database, "base")
    assert_refused(adaptide("db", "check"), "adaptide db upgrade")
    assert_refused(adaptide("keys", "list"), "adaptide db upgrade")
    assert_refused(adaptide("serve", "--port", "0"), "adaptide db upgrade")
    assert json.loads(adaptide("db", "current", "--json").stdout)["current"] is None
    upgraded = adaptide("db", "upgrade", "--json")
    assert json.loads(upgraded.stdout)["up_to_date"] is True
    assert adaptide("db", "check").returncode == 0


def test_a_wrong_setting_is_one_clear_line(adaptide: Adaptide) -> None:
    assert_refused(adaptide("db", "check", ADAPTIDE_COLOUR="red"), "ADAPTIDE_COLOUR")
    assert_refused(adaptide("db", "check", ADAPTIDE_DATABASE_URL="mysql://x/y"), "sqlite and postgresql")
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    assert_refused(adaptide("db", "check", ADAPTIDE_DATABASE_URL=nowhere), "did not answer")
    assert_refused(adaptide("serve", ADAPTIDE_LOG_LEVEL="LOUD"), "LOUD")


def test_a_port_in_use_is_one_clear_line(adaptide: Adaptide) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_refused(adaptide("serve", "--port", str(port)), f"port {port}", "--port")
    assert_refused(adaptide("serve", "--host", "192.0.2.1"), "192.0.2.1")


@pytest.mark.e2e
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_the_service_answers_and_stops_with_status_zero(
    adaptide: Adaptide, database_url: str, tmp_path: Path, stop: signal.Signals
) -> None:
    token = adaptide("keys", "create", "--name", "t", "--scope", "admin").stdout.strip()
    with serving(database_url, tmp_path) as (process, address):
        event = {
            "event_id": "e",
            "user_id": "u",
            "item_id": "i",
            "event_type": "click",
            "occurred_at": "2026-03-01T11:00:00Z",
        }
        headers = {"Authorization": f"Bearer {token}"}
        reply = httpx.post(f"{address}/v1/events", json={"events": [event]}, headers=headers)
        assert (reply.status_code, reply.json()["accepted"]) == (202, 1)
        huge = (b" " * 65_536 for _ in range(2_000))
        try:
            assert httpx.post(f"{address}/v1/events", content=huge, headers=headers).status_code == 413
        except httpx.WriteError:
            pass  # the server closed the connection before we had sent it all, which is the point
        assert httpx.get(f"{address}/health/live").status_code == 200
        process.send_signal(stop)
        assert process.wait(25) == 0


@pytest.mark.e2e
def test_what_was_acknowledged_before_a_kill_is_there_after_it(
    adaptide: Adaptide, database_url: str, tmp_path: Path, database: Database
) -> None:
    token = adaptide("keys", "create", "--name", "t", "--scope", "admin").stdout.strip()
    headers, acknowledged = {"Authorization": f"Bearer {token}"}, 0
    with serving(database_url, tmp_path) as (process, address):
        for batch in range(20):
            events = [
                {
                    "event_id": f"{batch}-{n}",
                    "user_id": "u",
                    "item_id": "i",
                    "event_type": "click",
                    "occurred_at": "2026-03-01T11:00:00Z",
                }
                for n in range(50)
            ]
            acknowledged += httpx.post(f"{address}/v1/events", json={"events": events}, headers=headers).json()[
                "accepted"
            ]
        process.kill()
        process.wait()
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM events").scalar_one() == acknowledged == 1_000
