"""Three replicas and two updaters on PostgreSQL behind the balancer that is shipped, all real processes."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import sqlalchemy as sa

from service.adapters.tables import activations
from service.adapters.tables import adapters as adapter_rows
from service.kit.db import Database
from service.kit.leases import leases
from service.windows.repository import Window
from service.windows.service import UPDATER_LEASE, read_window
from tests import worlds
from tests.cluster.names import Names
from tests.cluster.nursery import Nursery
from tests.conftest import POSTGRES_URL, _server

T = TypeVar("T")

HAPROXY_CFG = Path(__file__).parents[2] / "docker" / "haproxy.cfg"
REPLICAS = ("127.0.0.11", "127.0.0.12", "127.0.0.13")
WITHIN_S = {"redis": 2.0, "polling": 10.0}
"""So soon every replica serves what was promoted, by the way in which it hears of it."""
LEASE_S = 4.0
POLL_S = 4.0  # so long that a change seen within 2 s cannot have been seen by polling
DRAIN_S = 3.0
UP_S = 300.0  # torch is loaded by five processes at once, perhaps beside much else
SETTINGS = {
    "DRAIN": str(DRAIN_S),
    "POLL_INTERVAL": str(POLL_S),
    "LEASE_DURATION": str(LEASE_S),
    "TICK_INTERVAL": "0.2",
    "WINDOW_RETRY_PAUSE": "0",
    "THREADS": "1",
    "DEVICE": "cpu",
    "REQUEST_DEADLINE": "10",  # none falls back because the machine is slow
    "WINDOW_MIN_EVENTS": "1000000",
    "WINDOW_MAX_EVENTS": "1000000",
    "UPDATE_EPOCHS": "20",
    "UPDATE_MIN_STEPS": "0",
    "LEARNING_RATE_UPDATE": "0.01",
    "GATE_TOLERANCE": "1",
}


class Process:
    """A command of ours that was started, its log, and how it ended."""

    def __init__(self, nursery: Nursery, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        self._nursery = nursery
        self.pid = nursery.start(arguments, environment, log)

    def alive(self) -> bool:
        return self._nursery.status(self.pid) is None

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float) -> int | None:
        """Its status, None when it has not ended by then."""
        return self._nursery.status(self.pid, seconds)

    def said(self, words: str) -> bool:
        return self.log.exists() and words in self.log.read_text(errors="replace")


class Cluster:
    """start() once, heal() before each test, close() at the end. Direct clients bypass the balancer."""

    def __init__(self, folder: Path, database: Database, url: str, token: str, redis_url: str | None) -> None:
        self.folder, self.database, self.redis_url = folder, database, redis_url
        self._logs = 0
        self.headers = {"Authorization": f"Bearer {token}"}
        self._port = free_port(REPLICAS)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ADAPTIDE_")}
        own = SETTINGS | {
            "HOME": str(folder / "home"),
            "ARTIFACTS_URL": str(folder / "artifacts"),
            "DATABASE_URL": url,
            "PORT": str(self._port),
        }
        if redis_url:
            own["REDIS_URL"] = redis_url
        self._environment = kept | {f"ADAPTIDE_{name}": value for name, value in own.items()}
        self._environment |= {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "TMPDIR": str(folder)}
        self.replicas: dict[str, Process] = {}
        self.updaters: list[Process] = []
        self.names = Names()
        self.nursery = Nursery(self._log("nursery"))
        self.balancer: subprocess.Popen[bytes] | None = None
        self.address = f"http://127.0.0.1:{free_port(['127.0.0.1'])}"
        self._clients: dict[str, httpx.Client] = {}
        self._windows = 0

    @property
    def heard_by(self) -> str:
        """How replicas hear of a change: redis or polling."""
        return "redis" if self.redis_url else "polling"

    # Processes

    def start(self) -> None:
        self.heal()
        self.until("the balancer answers", lambda: answers(f"{self.address}/balancer/health"))

    def heal(self) -> None:
        """All that should run runs, is ready and is known to the balancer."""
        for host in REPLICAS:
            if host not in self.replicas or not self.replicas[host].alive():
                self.start_replica(host)
        self.updaters = [updater for updater in self.updaters if updater.alive()]
        while len(self.updaters) < 2:
            self.updaters.append(self._run("updater", "trainer", "run"))
        if self.balancer is None:
            self.balancer = self._balance()
        for host in REPLICAS:
            self.until(f"{host} is ready", lambda host=host: answers(self.url(host) + "/health/ready"), UP_S)
        for updater in self.updaters:
            self.until("an updater runs", lambda updater=updater: updater.said("updater_started") or None, UP_S)
        self.names.addresses = list(REPLICAS)
        for host in REPLICAS:
            self.until(f"the balancer sends to {host}", lambda host=host: self._reached(host))

    def start_replica(self, host: str) -> None:
        """Start one that has ended, and wait for nothing."""
        self.replicas[host] = self._run("serve", "serve", HOST=host)

    def _run(self, name: str, *arguments: str, **settings: str) -> Process:
        environment = self._environment | {f"ADAPTIDE_{key}": value for key, value in settings.items()}
        return Process(self.nursery, list(arguments), environment, self._log(name))

    def _balance(self) -> "subprocess.Popen[bytes]":
        found = shutil.which("haproxy")
        assert found is not None
        places = {
            "SERVICE_ADDRESS": f"service:{self._port}",
            "DNS_ADDRESS": self.names.address,
            "BALANCER_BIND": self.address.removeprefix("http://"),
            "METRICS_BIND": f"127.0.0.1:{free_port(['127.0.0.1'])}",
        }
        with self._log("haproxy").open("wb") as log:
            return subprocess.Popen(
                [found, "-db", "-f", str(HAPROXY_CFG)], env=os.environ | places, stdout=log, stderr=log
            )

    def _log(self, name: str) -> Path:
        self._logs += 1
        return self.folder / f"{self._logs:02d}-{name}.log"

    def _reached(self, host: str) -> bool | None:
        before = self.answered(host)
        for _ in REPLICAS:
            httpx.get(f"{self.address}/v1/items/{worlds.item_id(0)}", headers=self.headers, timeout=10)
        return True if self.answered(host) > before else None

    def close(self) -> None:
        self.nursery.close()
        if self.balancer is not None:
            self.balancer.kill()
            self.balancer.wait()
        for client in self._clients.values():
            client.close()
        self.names.close()

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def until(self, what: str, ask: Callable[[], T | None], seconds: float = 30) -> T:
        """What `ask` answers once it is not None."""
        deadline = time.monotonic() + seconds
        while (answer := ask()) is None:
            assert time.monotonic() < deadline, f"after {seconds:g} s it is still not so that {what}\n{self.logs()}"
            time.sleep(0.02)
        return answer

    # The replicas, each by itself

    def url(self, host: str) -> str:
        return f"http://{host}:{self._port}"

    def direct(self, host: str) -> httpx.Client:
        if host not in self._clients:
            self._clients[host] = httpx.Client(base_url=self.url(host), headers=self.headers, timeout=10)
        return self._clients[host]

    def answered(self, host: str) -> float:
        """Requests to /v1 that a replica has answered."""
        text = self.direct(host).get("/metrics").text
        found = re.findall(r'^adaptide_http_request_seconds_count\{.*route="/v1/[^"]*".*\} (\S+)$', text, re.MULTILINE)
        return sum(map(float, found))

    def served(self, host: str) -> str | None:
        """The version that the next reply names."""
        reply = self.direct(host).get(f"/v1/users/u{worlds.USERS - 1:02d}/recommendations").raise_for_status().json()
        version: str | None = (reply["model"] or {}).get("adapter_version")
        return version

    # The database

    @contextmanager
    def without_database(self) -> Iterator[None]:
        """Nobody gets into it while the block runs, and who was in it is thrown out."""
        name = self.database.url.database
        with _server(POSTGRES_URL) as server:
            try:
                server.execute(sa.text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'))
                ended = sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
                server.execute(ended, {"name": name})
                yield
            finally:
                server.execute(sa.text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'))

    # The updaters

    def close_window(self, client: httpx.Client) -> int:
        """Events of half the users, and a window closed behind them; its number."""
        self._windows += 1
        events = worlds.later_walks(self._windows, users=worlds.USERS // 2)
        for first in range(0, len(events), 500):
            client.post("/v1/events", json={"events": events[first : first + 500]}).raise_for_status()
        closed: dict[str, Any] = client.post("/v1/admin/windows/close").raise_for_status().json()
        number: int = closed["window_id"]
        return number

    def window(self, window_id: int) -> Window:
        return read_window(self.database, window_id)

    def worker_of(self, window_id: int) -> Process | None:
        """The updater that trains the window right now."""
        with self.database.read() as connection:
            owner = connection.scalar(sa.select(leases.c.owner).where(leases.c.name == UPDATER_LEASE))
        if owner is None or self.window(window_id).state != "training":
            return None
        return next((updater for updater in self.updaters if f"-{updater.pid}-" in owner), None)

    def outcomes(self, window_id: int) -> tuple[int, int]:
        """How many adapters and how many activations name the window."""
        with self.database.read() as connection:
            counts = [
                connection.scalar(sa.select(sa.func.count()).where(table.c.window_id == window_id)) or 0
                for table in (adapter_rows, activations)
            ]
        return counts[0], counts[1]


def answers(url: str) -> bool | None:
    try:
        return httpx.get(url, timeout=5).status_code == 200 or None
    except httpx.TransportError:
        return None


def free_port(hosts: tuple[str, ...] | list[str]) -> int:
    """One port that is free on every host."""
    for _ in range(50):
        taken: list[socket.socket] = []
        try:
            port = 0
            for host in hosts:
                taken.append(listener := socket.socket())
                listener.bind((host, port))
                port = listener.getsockname()[1]
            return port
        except OSError:
            continue
        finally:
            for listener in taken:
                listener.close()
    raise AssertionError(f"no port is free on all of {hosts}")
