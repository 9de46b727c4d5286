"""The commands and programs of docs/data.md and docs/client.md, run as they stand there."""

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service.access.schemas import Scope
from service.app import create_app
from service.kit import migrate
from service.kit.db import Database
from service.settings import Settings
from tests.serving import InThread
from trainer.cli import app as adaptide

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)


def blocks(page: str) -> list[tuple[str, str, str]]:
    """(language, title, text) of each."""
    found: list[tuple[str, str, str]] = _BLOCK.findall((DOCS / page).read_text())
    return found


def test_every_command_of_the_page_on_data_answers_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("polars")
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path / 'adaptide.db'}"
    monkeypatch.setenv("ADAPTIDE_DATABASE_URL", url)
    monkeypatch.setenv("ADAPTIDE_HOME", str(tmp_path / "home"))
    store = Database(url)
    migrate.upgrade(store)
    store.close()
    ran = 0
    for language, title, text in blocks("data.md"):
        if title:
            (tmp_path / title).parent.mkdir(exist_ok=True)
            (tmp_path / title).write_text(text)
        if language != "console":
            continue
        for command, expected in re.findall(r"^\$ adaptide (.*)\n([^$]*)", text, re.M):
            done = CliRunner().invoke(adaptide, shlex.split(command))
            assert done.exception is None, (command, done.exception, done.output)
            assert done.stdout.startswith(expected), (command, done.output)
            ran += 1
    assert ran >= 12


def test_the_programs_of_the_page_on_the_client_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served = create_app(settings)
    token = served.state.services.access.create("page", frozenset({Scope.ADMIN}), actor="cli").token
    api = InThread(served)
    api.start()
    monkeypatch.setitem(os.environ, "ADAPTIDE_URL", api.url)
    monkeypatch.setitem(os.environ, "ADAPTIDE_KEY", token)
    programs = [text for language, _, text in blocks("client.md") if language == "python"]
    names: dict[str, Any] = {}
    for program in programs:
        exec(compile(program, "docs/client.md", "exec"), names)  # noqa: S102  # our own page
    names["client"].close()
    api.stop()
    assert len(programs) >= 4
