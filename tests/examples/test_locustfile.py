"""The Locust file, for some seconds before a real service."""

import csv
import os
import subprocess
from pathlib import Path

import pytest

from service.access.schemas import Scope
from service.app import create_app
from service.client import Client, Event, Item
from service.settings import Settings
from tests.serving import InThread

FILE = Path(__file__).parents[2] / "docs/examples/locustfile.py"

PROGRAM = FILE.parents[2] / ".venv-load" / "bin" / "locust"


@pytest.fixture(autouse=True)
def _installed() -> None:
    """.ci/run makes .venv-load before the tests."""
    if not PROGRAM.exists():
        if os.environ.get("ADAPTIDE_TEST_REQUIRE_SERVICES"):
            pytest.fail("there is no .venv-load: make locust")
        pytest.skip("there is no .venv-load: make locust")


def locust(folder: Path, host: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(PROGRAM), "-f", str(FILE), "--host", host, "--headless", "--users", "1"]
    command += [
        "--run-time",
        "5s",
        "--csv",
        str(folder / "load"),
        "--only-summary",
        "--exit-code-on-error",
        "3",
        "--stop-timeout",
        "60",
    ]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=200, check=False)


def test_it_asks_and_tells_without_a_failure(settings: Settings, tmp_path: Path) -> None:
    app = create_app(settings)
    token = app.state.services.access.create("load", frozenset({Scope.READ, Scope.WRITE}), actor="cli").token
    api = InThread(app)
    api.start()
    with Client(api.url, token, timeout=60) as client:
        client.put_items([Item(item_id="a", title="Tea")])
        client.send_events([Event(user_id="u", item_id="a", event_type="buy")])
        done = locust(tmp_path, api.url, ADAPTIDE_LOAD_KEY=token, ADAPTIDE_LOAD_USERS="10")
    api.stop()
    assert done.returncode == 0, done.stderr
    with (tmp_path / "load_stats.csv").open() as file:
        rows = {row["Name"]: row for row in csv.DictReader(file)}
    assert int(rows["/v1/recommendations"]["Request Count"]) > 0
    assert rows["Aggregated"]["Failure Count"] == "0"


def test_without_a_key_it_says_how_to_make_one(tmp_path: Path) -> None:
    done = locust(tmp_path, "http://127.0.0.1:9")
    assert done.returncode != 0
    assert "adaptide keys create --name load" in done.stderr
