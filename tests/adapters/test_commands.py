"""`adaptide adapters ...` does what the API does, as actor cli."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from service.adapters.commands import app
from service.errors import AdaptideError, Conflict, NotFound
from service.kit.db import Database
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock


@pytest.fixture(autouse=True)
def _logging_is_put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


@pytest.fixture
def shelf(
    tmp_path: Path, database: Database, database_url: str, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> Shelf:
    monkeypatch.setenv("ADAPTIDE_DATABASE_URL", database_url)
    monkeypatch.setenv("ADAPTIDE_ARTIFACTS_URL", str(tmp_path / "artifacts"))
    return Shelf(tmp_path, database, clock)


def run(*arguments: str) -> Any:
    """The JSON that a command prints; its AdaptideError is raised."""
    result = CliRunner().invoke(app, [*arguments, "--json"])
    if isinstance(result.exception, AdaptideError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def text(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_registry_can_be_worked_by_command(shelf: Shelf) -> None:
    base = shelf.active_base()
    first, second = shelf.adapter(base, 0.1), shelf.adapter(base, 0.2)
    assert run("promote", first)["revision"] == 2
    assert run("promote", second, "--reason", "better", "--if-revision", "2")["from_version"] == first
    assert run("rollback")["to_version"] == first
    listed = run("list")
    assert listed["active"] == {"revision": 4, "base_id": base, "adapter_version": first}
    assert {adapter["adapter_version"]: adapter["state"] for adapter in listed["adapters"]} == {
        first: "active",
        second: "retired",
    }
    shown = run("show", second)
    assert [(move["actor"], move["reason"]) for move in shown["history"]] == [("cli", None), ("cli", "better")]
    assert run("verify") == {"base_id": base, "adapter_version": first, "verified": True}


def test_the_same_is_said_in_plain_text(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    assert "base -> " in text("promote", version)
    assert "revision 2" in text("list")
    assert "base -> " in text("show", version)
    assert "verified" in text("verify", version)
    assert "-> base" in text("rollback", "base")


def test_a_damaged_adapter_is_reported_and_readmitted_after_its_repair(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    good = shelf.damage(version)
    with pytest.raises(Conflict, match="sha256"):
        run("verify", version)
    assert run("show", version)["state"] == "corrupt"
    shelf.weights_of(version).write_bytes(good)
    run("verify", version)
    assert run("show", version)["state"] == "candidate"


def test_a_damaged_base_is_reported(shelf: Shelf) -> None:
    base = shelf.active_base()
    (shelf.artifacts.root / "bases" / base / "model" / "model.safetensors").write_bytes(b"gone")
    with pytest.raises(Conflict, match=base):
        run("verify")


def test_there_is_nothing_to_verify_in_an_empty_store(shelf: Shelf) -> None:
    with pytest.raises(Conflict, match="base build"):
        run("verify")
    with pytest.raises(NotFound):
        run("show", "a000001-000000000000")
