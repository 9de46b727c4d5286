"""`adaptide artifacts check` and `gc`: what goes is said beforehand and afterwards, as text and as JSON."""

import json
import logging
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import structlog
from typer.testing import CliRunner

from service.adapters import service
from service.adapters.artifact_commands import app
from service.adapters.artifacts import ADAPTERS
from service.adapters.moves import MoveRequest
from service.adapters.tables import adapters
from service.errors import AdaptideError, ConfigurationError
from service.kit import leases
from service.kit.db import Database
from service.windows.service import UPDATER_LEASE
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


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, AdaptideError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def as_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


def test_what_would_go_is_what_goes(shelf: Shelf) -> None:
    base = shelf.active_base()
    made = [shelf.adapter(base, 0.1 * n) for n in (1, 2, 3, 4)]
    for version in made:
        service.promote(shelf.database, shelf.clock, shelf.artifacts, version, MoveRequest("key:admin"))
    left = shelf.candidate(base, 0.9).adapter_version
    past = time.time() - 3 * 86400
    os.utime(shelf.artifacts.root / ADAPTERS / left / "manifest.json", (past, past))
    with shelf.database.write() as connection:  # the command's clock is the real one
        for n, version in enumerate(made):
            old = datetime.now(UTC) - timedelta(days=3) + timedelta(seconds=n)
            connection.execute(sa.update(adapters).where(adapters.c.adapter_version == version).values(created_at=old))
    text = run("gc", "--keep", "1", "--dry-run")
    assert f"would delete adapter {made[0]}" in text
    assert f"kept {made[3]}: active" in text
    would = as_json("gc", "--keep", "1", "--dry-run")
    done = as_json("gc", "--keep", "1")
    assert (would["dry_run"], done["dry_run"], done["updater_at_work"]) == (True, False, False)
    assert would["adapters"] == done["adapters"] == sorted(made[:2])
    assert would["leftovers"] == done["leftovers"] == [left]
    assert would["bytes"] == done["bytes"] > 0
    assert sorted(shelf.artifacts.names(ADAPTERS)) == sorted(made[2:])
    assert as_json("gc", "--keep", "1")["adapters"] == []


def test_beside_an_updater_at_work_what_is_not_registered_is_left(shelf: Shelf) -> None:
    left = shelf.candidate(shelf.active_base(), 0.9).adapter_version
    past = time.time() - 3 * 86400
    os.utime(shelf.artifacts.root / ADAPTERS / left / "manifest.json", (past, past))
    with shelf.database.write() as connection:
        assert leases.acquire(connection, UPDATER_LEASE, "somebody", timedelta(seconds=30))
    assert as_json("gc")["updater_at_work"]
    assert shelf.artifacts.names(ADAPTERS) == [left]


def test_the_place_is_checked(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert as_json("check") == {"place": str(tmp_path / "artifacts"), "writable": True}
    assert "can be read and written" in run("check")
    monkeypatch.setenv("ADAPTIDE_ARTIFACTS_URL", "memory://x")
    assert as_json("check")["place"] == "memory://x"
    monkeypatch.setenv("ADAPTIDE_ARTIFACTS_URL", "nosuch://x")
    with pytest.raises(ConfigurationError, match="no scheme that is known"):
        run("check")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ADAPTIDE_ARTIFACTS_URL", str(tmp_path / "file"))
    with pytest.raises(AdaptideError, match="not a folder"):
        run("check")
