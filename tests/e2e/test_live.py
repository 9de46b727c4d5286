"""The whole thing, as real processes: events in over HTTP, a window closed, the adapter changed live, rolled back."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from tests import worlds

T = TypeVar("T")

SETTINGS = {
    "ADAPTIDE_THREADS": "1",
    "ADAPTIDE_TICK_INTERVAL": "0.1",
    "ADAPTIDE_POLL_INTERVAL": "0.1",
    "ADAPTIDE_WINDOW_MIN_EVENTS": "100000",
    "ADAPTIDE_WINDOW_MAX_EVENTS": "100000",
    "ADAPTIDE_UPDATE_EPOCHS": "2",
    "ADAPTIDE_UPDATE_MIN_STEPS": "0",
    "ADAPTIDE_LEARNING_RATE_UPDATE": "0.01",
    "ADAPTIDE_GATE_TOLERANCE": "1",
    "ADAPTIDE_LOG_LEVEL": "INFO",
    "ADAPTIDE_DATABASE_ANSWER_TIMEOUT": "5",  # a busy machine's disk
    "OMP_NUM_THREADS": "1",
    "PYTHONFAULTHANDLER": "1",  # a child that hangs is made to say where
}


class Stage:
    """Starts commands over one HOME and store, as a newcomer does; says what they logged when something goes wrong."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ADAPTIDE_")}
        own = {"ADAPTIDE_HOME": str(folder / "home"), "ADAPTIDE_DATABASE_URL": database_url}
        self.environment = kept | SETTINGS | own
        self.children: list[tuple[subprocess.Popen[str], Path]] = []

    def run(self, *arguments: str) -> str:
        """A command to its end; its standard output."""
        line = [sys.executable, "-m", "trainer.cli", *arguments]
        done = subprocess.run(line, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        path = self.folder / f"{len(self.children)}-{arguments[0]}.log"
        with path.open("w") as log:
            line = [sys.executable, "-m", "trainer.cli", *arguments]
            child = subprocess.Popen(line, env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True)
        self.children.append((child, path))
        return child

    def serve(self) -> tuple[subprocess.Popen[str], str]:
        """The API, ready, and its address."""
        child = self.start("serve", "--port", "0")
        assert child.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", child.stdout.readline())
        assert found is not None, self.logs()
        address = found[0]
        self.until("the service is ready", lambda: _ready(address))
        return child, address

    def until(self, what: str, ask: Callable[[], T | None], seconds: float = 30) -> T:
        """What `ask` answers once it is not None."""
        deadline = time.monotonic() + seconds
        while (answer := ask()) is None:
            ended = [child.args for child, _ in self.children if child.poll() not in (None, 0, -signal.SIGKILL)]
            assert not ended, f"{ended} ended while waiting until {what}\n{self.logs()}"
            assert time.monotonic() < deadline, f"after {seconds:g} s it is still not so that {what}\n{self.logs()}"
            time.sleep(0.05)
        return answer

    def stop(self, child: subprocess.Popen[str]) -> int:
        """Its status after SIGTERM, which must come within what is promised."""
        child.send_signal(signal.SIGTERM)
        try:
            return child.wait(25)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGABRT)
            child.wait(10)
            pytest.fail(f"{child.args} does not end after SIGTERM\n{self.logs()}")

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-4000:]}" for _, path in self.children)

    def end(self) -> None:
        for child, _ in self.children:
            if child.poll() is None:
                child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()


class Asker:
    """Somebody who asks for recommendations all the time; keeps what was answered."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.replies: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Asker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(20)

    def _run(self) -> None:
        number = 0
        while not self._ended.wait(0.005):
            number += 1
            try:
                reply = self._client.get(f"/v1/users/u{number % worlds.USERS:02d}/recommendations")
            except httpx.HTTPError as error:
                self.failures.append(repr(error))
                continue
            if reply.status_code == 200:
                self.replies.append(reply.json())
            else:
                self.failures.append(f"{reply.status_code} {reply.text}")


@pytest.fixture
def stage(tmp_path: Path, database_url: str) -> Iterator[Stage]:
    made = Stage(tmp_path, database_url)
    yield made
    made.end()


def _ready(address: str) -> bool | None:
    try:
        return httpx.get(f"{address}/health/ready").status_code == 200 or None
    except httpx.TransportError:
        return None


def _post_events(client: httpx.Client, events: list[dict[str, Any]]) -> None:
    for first in range(0, len(events), 500):
        reply = client.post("/v1/events", json={"events": events[first : first + 500]})
        assert reply.status_code == 202, reply.text
        assert reply.json()["accepted"] == len(events[first : first + 500])


def _recommend(client: httpx.Client, user: str = "u00") -> dict[str, Any]:
    reply = client.get(f"/v1/users/{user}/recommendations")
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def _served(client: httpx.Client) -> str | None:
    """The adapter version that the next reply names, None unless it is personalised."""
    reply = _recommend(client)
    return reply["model"]["adapter_version"] if reply["strategy"] == "personalised" else None


@pytest.mark.e2e
@pytest.mark.timeout(150)
def test_events_become_an_adapter_that_is_swapped_in_live_and_rolled_back(stage: Stage) -> None:
    stage.run("db", "upgrade")
    key = json.loads(stage.run("keys", "create", "--name", "shop", "--scope", "admin", "--json"))["token"]
    service, address = stage.serve()
    updater = stage.start("trainer", "run")
    headers = {"Authorization": f"Bearer {key}"}

    with httpx.Client(base_url=address, headers=headers, timeout=10) as client:
        assert _recommend(client)["items"] == []  # an empty catalogue is no failure
        assert client.put("/v1/items", json={"items": worlds.items()}).json()["created"] == worlds.ITEMS
        _post_events(client, worlds.first_walks())
        popular = _recommend(client)
        assert (popular["strategy"], popular["fallback_reason"]) == ("popular", "no_model")

        sizes = ("--hidden", "32", "--layers", "1", "--epochs", "2", "--quantiser", "rqkmeans")
        built = json.loads(stage.run("base", "build", *sizes, "--json"))
        first = stage.until("recommendations are personalised", lambda: _served(client))
        assert first == built["adapter_version"]

        with Asker(client) as asker:
            _post_events(client, worlds.later_walks())
            closed = client.post("/v1/admin/windows/close")
            assert closed.status_code == 200, closed.text
            second = stage.until(
                "another adapter serves", lambda: version if (version := _served(client)) not in (None, first) else None
            )
            window = client.get("/v1/admin/windows").json()["windows"][0]
            assert (window["verdict"], window["candidate_version"]) == ("promoted", second), window

            registry = client.get("/v1/admin/adapters")
            assert registry.json()["active"]["adapter_version"] == second
            rolled_back = client.post("/v1/admin/adapters/rollback", headers={"If-Match": registry.headers["ETag"]})
            assert rolled_back.status_code == 200, rolled_back.text
            assert (rolled_back.json()["from_version"], rolled_back.json()["to_version"]) == (second, first)
            stage.until("the first adapter serves again", lambda: True if _served(client) == first else None)
        assert asker.failures == []
        assert {reply["strategy"] for reply in asker.replies} == {"personalised"}
        versions = [reply["model"]["adapter_version"] for reply in asker.replies]
        changes = [new for old, new in zip([None, *versions], versions, strict=False) if old != new]
        assert changes == [first, second, first]
        assert len(versions) >= 20

        before = client.get("/v1/users/u00/events").json()
        service.send_signal(signal.SIGKILL)
        service.wait(10)

    service, address = stage.serve()
    with httpx.Client(base_url=address, headers=headers, timeout=10) as client:
        assert client.get("/v1/users/u00/events").json() == before
        assert len(before["events"]) == 18
        assert stage.until("recommendations are personalised", lambda: _served(client)) == first
        assert client.get("/v1/admin/windows").json()["open"]["events"] == 0

    assert [stage.stop(child) for child in (service, updater)] == [0, 0], stage.logs()
