"""The steps of the images, followed without Docker: what they install runs, in an environment that has nothing else.

Minutes long, so only on demand: `make test-images` sets ADAPTIDE_TEST_IMAGES=1.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from tests import worlds
from tests.conftest import POSTGRES_URL, _server
from tests.deploy.dockerfile import Stage, stages

ROOT = Path(__file__).parents[2]
STAGES = stages(ROOT / "docker" / "Dockerfile")
VENV, HOME, CHECK = "/opt/adaptide", "/var/lib/adaptide", "/opt/healthcheck.py"
SIZES = ("--hidden", "32", "--layers", "1", "--epochs", "1", "--quantiser", "rqkmeans")

on_demand = pytest.mark.skipif(os.environ.get("ADAPTIDE_TEST_IMAGES") != "1", reason="takes minutes: make test-images")


class Container:
    """Runs a stage's command as its image does, with the image's folders moved to where this test may write."""

    def __init__(self, name: str, root: Path, **settings: str) -> None:
        self.stage: Stage = STAGES[name]
        self.root = root
        own = {key: self.moved(value) for key, value in self.stage.environment.items()}
        own["PATH"] = f"{self.moved(VENV)}/bin:/usr/bin:/bin"
        self.environment = own | {"LANG": "C.UTF-8", "HOME": self.moved(HOME)} | settings
        self.children: list[subprocess.Popen[bytes]] = []

    def moved(self, text: str) -> str:
        if text.startswith("/tmp/"):  # noqa: S108  # the image's
            return f"{self.root}{text}"
        for inside in (VENV, HOME, CHECK):
            text = text.replace(inside, f"{self.root}{inside}")
        return text

    def line(self, *command: str) -> list[str]:
        return [*self.stage.words("ENTRYPOINT"), *command]

    def run(self, *command: str) -> str:
        """A command to its end, instead of the image's; its standard output."""
        done = subprocess.run(
            self.line(*command), env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self) -> subprocess.Popen[bytes]:
        """What the image runs."""
        log = (self.root / f"{self.stage.words('CMD')[0]}.log").open("wb")
        with log:
            child = subprocess.Popen(
                self.line(*self.stage.words("CMD")), env=self.environment, stdout=log, stderr=log, cwd=self.root
            )
        self.children.append(child)
        return child

    def healthy(self) -> bool:
        """The image's own check."""
        line = [self.moved(word) for word in self.stage.words("HEALTHCHECK")]
        return subprocess.run(line, env=self.environment, capture_output=True, timeout=30, check=False).returncode == 0

    def log(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in self.root.glob("*.log"))

    def end(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stage `build` makes, from the files that .dockerignore lets through."""
    folder = tmp_path_factory.mktemp("image")
    source = folder / "source"
    build = STAGES["build"]
    sent = _sent()
    for instruction, rest in build.steps:
        if instruction == "COPY":
            *what, to = rest.split()
            for name in what:
                assert any(name == kept or kept.startswith(name + "/") for kept in sent), f"{name} is not sent"
                _copy(ROOT / name, source / (to if len(what) == 1 and not to.endswith("/") else f"{to}/{name}"))
            continue
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ADAPTIDE_")}
        own = {name: value for name, value in build.environment.items() if value and name != "PIP_NO_CACHE_DIR"}
        line = rest.replace(VENV, f"{folder}{VENV}")
        # torch alone takes minutes where it is not in pip's cache
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=source,
            env=kept | own | {"PYTHON": sys.executable},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    (folder / HOME.lstrip("/")).mkdir(parents=True)
    shutil.copy(ROOT / "docker" / "healthcheck.py", folder / CHECK.lstrip("/"))
    shutil.rmtree(source)  # the final stage does not have it
    return folder


@pytest.fixture
def store() -> Iterator[str]:
    """An empty database."""
    name = f"adaptide_image_{uuid.uuid4().hex[:8]}"
    with _server(POSTGRES_URL) as server:
        server.execute(sa.text(f'CREATE DATABASE "{name}"'))
    yield make_url(POSTGRES_URL).set(database=name).render_as_string(hide_password=False)
    with _server(POSTGRES_URL) as server:
        server.execute(sa.text(f'DROP DATABASE "{name}" WITH (FORCE)'))


def test_only_what_the_images_need_is_sent_to_the_builder() -> None:
    named = {word for step, rest in STAGES["build"].steps if step == "COPY" for word in rest.split()[:-1]}
    named |= {rest.split()[0] for step, rest in STAGES["runtime"].steps if step == "COPY" and "--from" not in rest}
    assert set(_sent()) == named


@on_demand
@pytest.mark.e2e
@pytest.mark.postgres
@pytest.mark.timeout(1800)
def test_what_the_images_install_migrates_serves_learns_and_stops(root: Path, store: str) -> None:
    marker = root / "marker"
    marker.touch()
    ports = {"ADAPTIDE_PORT": str(_free_port()), "ADAPTIDE_TRAINER_PORT": str(_free_port())}
    settings = {"ADAPTIDE_DATABASE_URL": store, **ports, "ADAPTIDE_THREADS": "1"}
    service, trainer = Container("service", root, **settings), Container("trainer", root, **settings)
    try:
        assert not service.healthy()
        assert json.loads(service.run("db", "upgrade", "--json"))["up_to_date"]
        token = json.loads(service.run("keys", "create", "--name", "me", "--scope", "admin", "--json"))["token"]
        started = [service.start(), trainer.start()]
        _until(service.healthy, service)
        _until(trainer.healthy, trainer)
        with httpx.Client(
            base_url=f"http://127.0.0.1:{ports['ADAPTIDE_PORT']}",
            headers={"Authorization": f"Bearer {token}"},
            timeout=30,
        ) as client:
            client.put("/v1/items", json={"items": worlds.items()}).raise_for_status()
            events = worlds.first_walks()
            for first in range(0, len(events), 500):
                client.post("/v1/events", json={"events": events[first : first + 500]}).raise_for_status()
            trainer.run("base", "build", *SIZES)
            _until(lambda: _strategy(client) == "personalised", service)
        for child in started:
            child.send_signal(signal.SIGTERM)
        # how soon is tests.e2e's to hold, on processes that have the machine to themselves
        assert [child.wait(120) for child in started] == [0, 0], service.log()
    finally:
        service.end()
        trainer.end()
    written = [path for path in (root / VENV.lstrip("/")).rglob("*") if path.lstat().st_mtime > marker.stat().st_mtime]
    assert written == [], "an image's root file system is read-only"


def _strategy(client: httpx.Client) -> str:
    reply: dict[str, Any] = client.get("/v1/users/u00/recommendations").raise_for_status().json()
    found: str = reply["strategy"]
    return found


def _sent() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line[1:] for line in lines if line.startswith("!")]


def _copy(what: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if what.is_dir():
        shutil.copytree(what, to, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(what, to)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def _until(condition: Callable[[], bool], container: Container) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline, container.log()
        time.sleep(0.2)
