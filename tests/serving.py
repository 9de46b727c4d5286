"""`adaptide serve` as a process of its own, over a store and a home that a test names, or in a thread."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI

from service.cli import bind
from service.http.protocol import PatientProtocol
from tests import worlds


def command(url: str, home: Path, *arguments: str, **settings: str) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of `adaptide` with these arguments; settings without ADAPTIDE_."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ADAPTIDE_")}
    own = {"DATABASE_URL": url, "HOME": str(home)} | settings
    environment = kept | {f"ADAPTIDE_{name}": value for name, value in own.items()} | {"PYTHONWARNINGS": "error"}
    return [sys.executable, "-m", "service.cli", *arguments], environment


@contextmanager
def serving(
    url: str, home: Path, log: Path | None = None, **settings: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, ready, and its address; killed at the end if it still runs."""
    line, environment = command(url, home, "serve", "--port", "0", **settings)
    with Path(log or os.devnull).open("a") as output:
        process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=output, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert found is not None
        address, deadline = found[0], time.monotonic() + 120
        while not _ready(address):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process, address
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health/ready", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


class InThread:
    """An application on a port, in a thread of this process, as `adaptide serve` runs it; start() and stop() once."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self._listener = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        config = uvicorn.Config(app, http=PatientProtocol, ws="none", log_config=None, access_log=False)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))

    def start(self) -> None:
        self._thread.start()
        worlds.eventually(lambda: self._server.started or not self._thread.is_alive(), 60)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)
