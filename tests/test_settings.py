"""Settings come from the environment, each wrong one is named, and the table lists them all."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from service.errors import ConfigurationError
from service.settings import Settings, load_settings, settings_page, settings_table


def test_a_variable_sets_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTIDE_WINDOW_MAX_AGE", "PT2H")
    monkeypatch.setenv("ADAPTIDE_POLL_INTERVAL", "2.5")
    monkeypatch.setenv("ADAPTIDE_IGNORED_EVENT_TYPES", '["impression", "hover"]')
    settings = load_settings()
    assert settings.window_max_age == timedelta(hours=2)
    assert settings.poll_interval == timedelta(seconds=2.5)
    assert settings.ignored_event_types == {"impression", "hover"}


def test_an_unknown_variable_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTIDE_BEEMS", "3")
    with pytest.raises(ConfigurationError, match="ADAPTIDE_BEEMS"):
        load_settings()


def test_every_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTIDE_BEAMS", "none")
    monkeypatch.setenv("ADAPTIDE_PORT", "70000")
    with pytest.raises(ConfigurationError, match=r"ADAPTIDE_PORT.*ADAPTIDE_BEAMS"):
        load_settings()


@pytest.mark.parametrize("variable", ["ADAPTIDE_TEST_CRASH_AT", "ADAPTIDE_TEST_PAUSE_AT"])
def test_a_crash_point_is_for_tests_only(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "published")
    load_settings()
    with pytest.raises(ConfigurationError, match=rf"{variable}.* is unset: it is for tests"):
        load_settings(environment="production", database_url="sqlite:///x.db", artifacts_url="artifacts")
    monkeypatch.setenv(variable, "sometime")
    with pytest.raises(ConfigurationError, match="no crash point: sealed, claimed"):
        load_settings()


def test_the_place_of_artifacts_is_a_folder_or_a_url(tmp_path: Path) -> None:
    assert Settings(home=tmp_path).artifacts_dir == tmp_path / "artifacts"
    for url in (str(tmp_path / "a b"), f"file://{tmp_path}/a%20b"):
        settings = Settings(home=tmp_path, artifacts_url=url)
        assert (settings.artifacts_remote, settings.artifacts_dir) == (None, tmp_path / "a b")
    settings = Settings(home=tmp_path, artifacts_url="s3://bucket/prefix")
    assert settings.artifacts_remote == "s3://bucket/prefix"
    assert settings.artifacts_dir == tmp_path / "cache" / "artifacts"


def test_credentials_in_the_url_of_artifacts_are_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTIDE_ARTIFACTS_URL", "s3://key:hunter2@bucket/prefix")
    with pytest.raises(ConfigurationError, match="carries no credentials") as refused:
        load_settings()
    assert "hunter2" not in str(refused.value)


def test_a_password_is_not_shown() -> None:
    settings = Settings(database_url="postgresql://u:hunter2@h/d")
    assert "hunter2" not in repr(settings)
    assert "hunter2" in settings.store_url


def test_the_table_has_a_line_with_a_meaning_for_every_setting() -> None:
    rows = [line.split(" | ") for line in settings_table().splitlines()[2:]]
    assert [row[0].strip("|` ") for row in rows] == ["ADAPTIDE_" + name.upper() for name in Settings.model_fields]
    assert all(len(row) == 3 and len(row[2]) > 5 for row in rows)
    assert "| `ADAPTIDE_WINDOW_MAX_AGE` | `3600 s` |" in settings_table()


def test_the_module_prints_the_table() -> None:
    printed = subprocess.run([sys.executable, "-m", "service.settings"], capture_output=True, text=True, check=True)
    assert printed.stdout == settings_page()


def test_the_documented_settings_are_the_ones_that_there_are() -> None:
    page = Path(__file__).parents[1] / "docs" / "settings.md"

    assert page.read_text() == settings_page(), "run: python -m service.settings > docs/settings.md"
