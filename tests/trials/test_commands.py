"""`adaptide adapters canary, shadow, trial` do what the API does, as actor cli."""

from pathlib import Path

import pytest

import service.trials.commands  # noqa: F401  # beside those of adapters
from service.errors import Conflict
from service.kit.db import Database
from tests.adapters.test_commands import _logging_is_put_back, run, text  # noqa: F401
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock


@pytest.fixture
def shelf(
    tmp_path: Path, database: Database, database_url: str, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> Shelf:
    monkeypatch.setenv("ADAPTIDE_DATABASE_URL", database_url)
    monkeypatch.setenv("ADAPTIDE_ARTIFACTS_URL", str(tmp_path / "artifacts"))
    return Shelf(tmp_path, database, clock)


def test_a_trial_can_be_worked_by_command(shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    assert text("trial").strip() == "no adapter is on trial, revision 0"
    started = run("shadow", version, "--share", "0.05", "--reason", "first look")
    assert (started["deed"], started["trial"]["kind"], started["trial"]["ends_at"]) == ("start", "shadow", None)
    changed = run("canary", version, "--share", "0.1", "--hours", "24", "--if-revision", "1")
    assert (changed["deed"], changed["trial"]["share"]) == ("change", 0.1)
    shown = run("trial")
    assert (shown["revision"], shown["trial"]["adapter_version"]) == (2, version)
    assert shown["report"]["shadow"]["requests"] == 0
    assert "canary of" in text("trial")
    assert run("trial", "--end")["trial"] is None
    assert "no adapter is on trial" in text("trial")
    with pytest.raises(Conflict, match="no adapter is on trial"):
        run("trial", "--end")
