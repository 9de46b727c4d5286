"""An S3 server as a process of its own, and a proxy before it that refuses, cuts or damages on purpose."""

import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import REQUIRE_SERVICES

KEY, SECRET = "AKIATESTSTESTSTESTS", "a-secret-that-no-log-may-show"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class S3Server:
    """nanio over a folder: a bucket is a folder in it, an object a file."""

    def __init__(self, data: Path) -> None:
        self.data, self.port = data, free_port()
        self.data.mkdir(parents=True, exist_ok=True)
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = Path(sys.executable).with_name("nanio")
        environment = os.environ | {"NANIO_ACCESS_KEY": KEY, "NANIO_SECRET_KEY": SECRET}
        self.process = subprocess.Popen(
            [command, "serve", "--data-dir", self.data, "--host", "127.0.0.1", "--port", str(self.port)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert self.process.poll() is None, "the S3 server did not start"
                assert time.monotonic() < deadline, "the S3 server does not listen"
                time.sleep(0.05)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def bucket(self, name: str) -> Path:
        """A bucket, made if need be; its objects are the files in it."""
        folder = self.data / name
        folder.mkdir(exist_ok=True)
        return folder


def use(patch: pytest.MonkeyPatch, url: str, *, secret: str = SECRET) -> None:
    """What an operator sets in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    patch.setenv("AWS_ACCESS_KEY_ID", KEY)
    patch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    patch.setenv("AWS_REGION", "us-east-1")
    patch.setenv("AWS_ENDPOINT_URL", url)


@contextmanager
def serving(data: Path) -> Iterator[S3Server]:
    """The server until the block ends. Skips without its package."""
    if shutil.which("nanio", path=str(Path(sys.executable).parent)) is None:
        (pytest.fail if REQUIRE_SERVICES else pytest.skip)("the S3 server is not installed: pip install nanio")
    server = S3Server(data)
    try:
        yield server
    finally:
        server.kill()


Answer = tuple[int, bytes, dict[str, str]] | None
Meddle = Callable[[str, str, bytes], Answer]
"""(method, path, body) -> status, body and headers to answer with, None to pass it on. May do anything before that."""


def refuse(code: str, status: int = 403) -> tuple[int, bytes, dict[str, str]]:
    """An error as S3 puts it; like S3's, it quotes the key."""
    text = f"<Error><Code>{code}</Code><AWSAccessKeyId>{KEY}</AWSAccessKeyId><Message>{SECRET}</Message></Error>"
    return status, text.encode(), {}


@contextmanager
def between(server: S3Server, meddle: Meddle) -> Iterator[str]:
    """The URL of a proxy that passes requests on unless `meddle` answers them itself."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = meddle(self.command, self.path, body)
            length = None
            if answer is None:
                onward = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
                try:
                    onward.request(self.command, self.path, body, dict(self.headers))
                    reply = onward.getresponse()
                    kept = {name: value for name, value in reply.getheaders() if name.lower() in KEPT}
                    answer = reply.status, reply.read(), kept
                    length = reply.getheader("Content-Length") if self.command == "HEAD" else None
                except OSError:
                    self.close_connection = True
                    return
                finally:
                    onward.close()
            self.send_response(answer[0])
            for name, value in answer[2].items():
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(answer[1])))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer[1])

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

        def log_message(self, format: str, *args: object) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}"
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


KEPT = {"etag", "last-modified", "content-range", "content-type", "accept-ranges"}
