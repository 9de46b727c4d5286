"""A Redis of a test's own, and replicas of the real application over one store."""

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fastapi import FastAPI
from redis import AuthenticationError, Redis, RedisError
from starlette.testclient import TestClient

from service.access.schemas import Scope
from service.adapters.activation import Activation
from service.app import create_app
from service.kit.redis_link import RedisLink
from service.settings import Settings
from service.wiring import Services
from tests.conftest import SetClock
from tests.worlds import eventually


def soon(condition: Callable[[], bool]) -> None:
    """Wait for what promises no time; a busy machine may take its own."""
    eventually(condition, 30)


class OwnRedis:
    """A process on a free port; what it saves lies in `folder`."""

    def __init__(self, program: str, folder: Path) -> None:
        folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        places = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._command = [program, *places, "--save", "", "--appendonly", "no", "--loglevel", "warning"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        self._process = subprocess.Popen([*self._command, *arguments], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while True:
            try:
                with Redis(port=self.port, socket_timeout=5) as client:
                    client.execute_command("PING")
                return
            except AuthenticationError:  # it answers
                return
            except RedisError:
                assert time.monotonic() < deadline, "redis-server does not answer"
                time.sleep(0.02)

    def save(self) -> None:
        with Redis(port=self.port) as client:
            client.save()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


class Replica:
    """One of the applications over a store."""

    def __init__(self, app: FastAPI, client: TestClient) -> None:
        self.app, self.client = app, client
        self.services: Services = app.state.services
        self.activation = next(part for part in self.services.background if isinstance(part, Activation))

    @property
    def link(self) -> RedisLink:
        assert self.services.shared.link is not None
        return self.services.shared.link

    @property
    def served(self) -> str | None:
        return self.activation.status().adapter_version

    def redis_part(self) -> dict[str, object]:
        """As /health/ready tells it."""
        part: dict[str, object] = self.client.get("/health/ready").json()["parts"]["redis"]
        return part

    def is_ready(self) -> bool:
        return self.client.get("/health/ready").status_code == 200


@contextlib.contextmanager
def replicas(settings: Settings, clock: SetClock, count: int = 1) -> Iterator[list[Replica]]:
    """Started, with the same admin key, each after it has acted upon the pointer."""
    with contextlib.ExitStack() as stack:
        made: list[Replica] = []
        token = None
        for _ in range(count):
            app = create_app(settings, clock=clock)
            client = stack.enter_context(TestClient(app, raise_server_exceptions=False))
            replica = Replica(app, client)
            if token is None:
                token = replica.services.access.create("tests", frozenset({Scope.ADMIN}), actor="cli").token
            client.headers["Authorization"] = f"Bearer {token}"
            deadline = time.monotonic() + 30
            while not replica.activation.status().settled:
                assert time.monotonic() < deadline, "the pointer was not read"
                time.sleep(0.005)
            made.append(replica)
        yield made
