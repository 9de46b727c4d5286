"""Scenario 20: huge, deep, slow and malformed requests to a real process; memory stays and health is answered."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from service.access.schemas import Scope
from service.access.service import AccessService
from service.cli import SEND_BYTES
from service.http.body_limit import BODY_S
from service.http.protocol import HEAD_S, PIPELINED
from service.kit.clock import utc_now
from service.kit.db import Database
from tests.chaos.scenarios import sized
from tests.serving import serving

MIB = 2**20
BODY = sized(64 * MIB, 1024 * MIB)
SLOW = 200
WHOLE = 100  # bodies of 1 MiB at the same time
PATIENCE_S = 120.0
MOST_GROWTH = 16 * MIB
LISTENS = "0A"  # in /proc/net/tcp
LIVE = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"


class Target:
    """A process that serves, and a key of it."""

    def __init__(self, address: str, pid: int, token: str) -> None:
        self.address, self.pid, self.token = address, pid, token
        self.place = (urlsplit(address).hostname or "", urlsplit(address).port or 0)

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        made = socket.socket()
        made.settimeout(PATIENCE_S)
        if receive_buffer is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        made.connect(self.place)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def head(self, method: str, path: str, *fields: str) -> bytes:
        given = ["Host: a", f"Authorization: Bearer {self.token}", "Content-Type: application/json", *fields]
        return "\r\n".join([f"{method} {path} HTTP/1.1", *given, "", ""]).encode("latin-1")

    def held_by_system(self) -> int:
        """Bytes of replies that the system holds for the clients of this process."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        ours = f":{self.place[1]:04X}"
        return sum(int(row[4].partition(":")[0], 16) for row in rows if row[1].endswith(ours) and row[3] != LISTENS)

    def replies(self, *parts: bytes) -> list[int]:
        """Status of every reply to what is sent over one connection, until the server ends it."""
        with self.connect() as connection:
            return read(connection, lambda: [connection.sendall(part) for part in parts])

    def ask(self, method: str, path: str, body: Any) -> int:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = self.head(method, path, f"Content-Length: {len(content)}", "Connection: close")
        [status] = self.replies(head + content)
        return status

    def memory(self, name: str) -> int:
        """Bytes of VmRSS, or of VmHWM, its peak."""
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")


def read(connection: socket.socket, send: Callable[[], object] = lambda: None) -> list[int]:
    """Statuses of the replies, until the server ends the connection; it may do so while we still send."""
    try:
        send()
    except OSError:
        pass
    received = b""
    try:
        while data := connection.recv(65_536):
            received += data
    except OSError:
        pass
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", received)]


class Probe:
    """Asks for health all the time over new connections; every answer has to be 200."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.answers: list[int] = []
        self.slowest_s = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Probe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        while not self._ended.wait(0.1):
            for path in ("/health/live", "/health/ready"):
                started = time.monotonic()
                try:
                    self.answers.append(httpx.get(self._address + path, timeout=30).status_code)
                except httpx.HTTPError:
                    self.answers.append(0)
                self.slowest_s = max(self.slowest_s, time.monotonic() - started)


@pytest.fixture
def target(tmp_path: Path, _sqlite_template: Path) -> Iterator[Target]:
    path = tmp_path / "adaptide.db"
    path.write_bytes(_sqlite_template.read_bytes())
    url = f"sqlite:///{path}"
    database = Database(url)
    token = AccessService(database, utc_now).create("tests", frozenset({Scope.ADMIN}), actor="cli").token
    database.close()
    log = tmp_path / "serve.log"
    with serving(url, tmp_path, log, FAILURE_LIMIT="0", THREADS="1", LOG_LEVEL="WARNING") as (process, address):
        yield Target(address, process.pid, token)
        assert process.poll() is None
        assert "request_crashed" not in log.read_text(), log.read_text()[-3000:]


def events(count: int) -> dict[str, Any]:
    return {
        "events": [
            {
                "event_id": f"e{number}",
                "user_id": "u",
                "item_id": "i",
                "event_type": "view",
                "occurred_at": "2026-03-01T11:00:00Z",
                "properties": {"filling": "x" * 1_700},
            }
            for number in range(count)
        ]
    }


def warm(target: Target) -> None:
    """What a busy day brings, so that what is measured afterwards is the attack's."""
    for _ in range(3):
        assert target.ask("POST", "/v1/events", events(500)) == 202
        assert target.ask("PUT", "/v1/items", b"{" + b" " * (MIB - 1)) == 422
    threads = [threading.Thread(target=target.ask, args=("POST", "/v1/events", events(500))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# --- the attacks; each says what was answered ---


def huge(target: Target) -> list[int]:
    piece = b" " * 65_536
    chunks = [b"10000\r\n" + piece + b"\r\n"] * (BODY // len(piece))
    found = []
    for method, path in (("POST", "/v1/events"), ("PUT", "/v1/items"), ("POST", "/v1/recommendations")):
        found += target.replies(target.head(method, path, "Transfer-Encoding: chunked"), *chunks)
        found += target.replies(target.head(method, path, f"Content-Length: {BODY}"), *[piece] * len(chunks))
    return found


def deep(target: Target) -> list[int]:
    nests = [b"[" * 10_000 + b"]" * 10_000, b'{"a":' * 10_000 + b"1" + b"}" * 10_000]
    nests += [b'{"events":' + nests[0] + b"}", b"[" * 500_000]
    return [
        target.ask(method, path, nest)
        for method, path in (("POST", "/v1/events"), ("PUT", "/v1/items"), ("POST", "/v1/recommendations"))
        for nest in nests
    ]


def too_many(target: Target) -> list[int]:
    items = {"items": [{"item_id": f"i{number}", "title": "t"} for number in range(501)]}
    small = {"events": [{**event, "properties": {}} for event in events(501)["events"]]}
    return [target.ask("POST", "/v1/events", small), target.ask("PUT", "/v1/items", items)]


def large_heads(target: Target) -> list[int]:
    begin = b"GET /health/live HTTP/1.1\r\nHost: a\r\n"
    fields = b"".join(b"x-%d: y\r\n" % number for number in range(20_000))
    endless = (begin + b"x: ", *(b"y" * 65_536 for _ in range(BODY // 65_536 // 4)))
    found = target.replies(begin + fields + b"\r\n") + target.replies(begin + b"x: " + b"y" * MIB + b"\r\n\r\n")
    found += target.replies(*endless)
    found += target.replies(begin, *(b"x: %d\r\n" % number for number in range(5_000)))
    trailers = b"0\r\n" + b"".join(b"x-%d: y\r\n" % number for number in range(20_000))
    return found + target.replies(target.head("POST", "/v1/events", "Transfer-Encoding: chunked") + trailers)


def long_addresses(target: Target) -> list[int]:
    found = []
    for size in (20_000, MIB):
        found += target.replies(b"GET /health/live?q=" + b"y" * size + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        found += target.replies(b"GET /" + b"y" * size + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    return found


def zeros(target: Target) -> list[int]:
    found = [
        target.ask(method, path, {})
        for method, path in (
            ("GET", "/v1/items/%00"),
            ("GET", "/v1/users/a%00b/events"),
            ("GET", "/v1/users/a%00b/recommendations"),
            ("DELETE", "/v1/users/%00"),
            ("GET", "/v1/admin/adapters/a%00"),
            ("GET", "/v1/admin/audit?before=%00"),
        )
    ]
    return found + target.replies(b"GET /v1/items/\x00 HTTP/1.1\r\nHost: a\r\n\r\n")


def ambiguous(target: Target) -> list[int]:
    """Shapes by which a balancer and a server can disagree on where a request ends. One reply each, and the end."""
    chunked, closing = "Transfer-Encoding: chunked", b"0\r\n\r\n" + LIVE
    shapes = [
        target.head("POST", "/v1/events", "Content-Length: 5", chunked) + closing,
        target.head("POST", "/v1/events", chunked, "Content-Length: 5") + closing,
        target.head("POST", "/v1/events", "Content-Length: 5", "Content-Length: 6") + closing,
        target.head("POST", "/v1/events", "Content-Length: -5") + closing,
        target.head("POST", "/v1/events", "Content-Length: 5, 6") + closing,
        target.head("POST", "/v1/events", "Content-Length: 0x5") + closing,
        target.head("POST", "/v1/events", "Content-Length: 99999999999999999999999") + closing,
        target.head("POST", "/v1/events", "Transfer-Encoding: xchunked") + closing,
        target.head("POST", "/v1/events", "Transfer-Encoding: chunked, identity") + closing,
        target.head("POST", "/v1/events", "Transfer-Encoding : chunked") + closing,
        target.head("POST", "/v1/events", "Transfer-Encoding:\x0bchunked") + closing,
        target.head("POST", "/v1/events", chunked) + b"zz\r\n" + closing,
        target.head("POST", "/v1/events", chunked) + b"-1\r\n" + closing,
        target.head("POST", "/v1/events", chunked) + b"fffffffffffffffffff\r\n" + closing,
        target.head("POST", "/v1/events", chunked) + b"1\r\nxx\r\n" + closing,
        target.head("GET", "/health/live", "X: a\r\n b\rGET /health/live HTTP/1.1"),
        b"GET /health/live HTTP/9.9\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    found = []
    for shape in shapes:
        replies = target.replies(shape)
        assert len(replies) <= 1, (shape, replies)
        found += replies or [400]  # ended without a word
    return found


def ahead(target: Target) -> list[int]:
    """Thousands of requests that do not wait for their replies."""
    return target.replies(LIVE * 20_000)


def nearly_whole(target: Target, head: bytes, last: bytes) -> list[int]:
    """Bodies of 1 MiB at the same time, each of which wants its last byte; then that."""
    connections = [target.connect() for _ in range(WHOLE)]
    try:
        for piece in (head + b"{" + b" " * (MIB - 2), last):
            for connection in connections:
                connection.sendall(piece)
        found = [re.match(rb"HTTP/1\.1 (\d{3})", connection.recv(65_536)) for connection in connections]
    finally:
        for connection in connections:
            connection.close()
    return [int(reply[1]) if reply else 0 for reply in found]


def without_a_key(target: Target) -> list[int]:
    found = []
    for method, path in (
        ("POST", "/v1/recommendations"),
        ("POST", "/v1/admin/adapters/rollback"),
        ("PUT", "/v1/admin/trial"),
        ("PUT", "/v1/items"),
    ):
        head = target.head(method, path, f"Content-Length: {MIB}").replace(target.token.encode(), b"none")
        found += nearly_whole(target, head, b"}")
    return found


def with_a_key(target: Target) -> list[int]:
    """There is room for a few; the others are told to come again."""
    return nearly_whole(target, target.head("POST", "/v1/recommendations", f"Content-Length: {MIB}"), b"}")


@contextmanager
def slow_sockets(target: Target, done: dict[str, list[int]]) -> Iterator[None]:
    """So many clients that send a byte now and then: half of them heads, half bodies. `done`: what they were told."""
    stopped = threading.Event()
    head = target.head("PUT", "/v1/items", f"Content-Length: {MIB}")
    connections: dict[socket.socket, str] = {}
    for number in range(SLOW):
        connection = target.connect()
        connections[connection] = "head" if number % 2 else "body"
        connection.sendall(b"GET /health/live HTTP/1.1\r\nx: " if number % 2 else head)

    def trickle() -> None:
        while not stopped.wait(0.5):
            for connection in connections:
                try:
                    connection.send(b"y")
                except OSError:
                    pass

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        yield
        for connection, kind in connections.items():
            connection.settimeout(PATIENCE_S)
            done.setdefault(kind, []).extend(read(connection) or [0])
    finally:
        stopped.set()
        thread.join()
        for connection in connections:
            connection.close()


ATTACKS: dict[str, tuple[Callable[[Target], list[int]], set[int]]] = {
    "huge": (huge, {413}),
    "deep": (deep, {422}),
    "too_many": (too_many, {422}),
    "large_heads": (large_heads, {431}),
    "long_addresses": (long_addresses, {414}),
    "zeros": (zeros, {400, 422}),
    "ambiguous": (ambiguous, {400}),
    "ahead": (ahead, {200, 429}),
    "without_a_key": (without_a_key, {401}),
    "with_a_key": (with_a_key, {200, 503}),
}
"""What is sent, and all that may be answered."""


@pytest.mark.scenario(20)
@pytest.mark.e2e
@pytest.mark.timeout(sized(300, 3600))
def test_memory_stays_and_health_is_answered_whatever_is_sent(target: Target, figures: dict[str, Any]) -> None:
    warm(target)
    before = target.memory("VmRSS")
    answered: dict[str, list[int]] = {}
    slow: dict[str, list[int]] = {}
    growth: dict[str, float] = {}
    with Probe(target.address) as probe:
        started = time.monotonic()
        with slow_sockets(target, slow):
            for name, (attack, _) in ATTACKS.items():
                target.forget_peak()
                answered[name] = attack(target)
                growth[name] = round((target.memory("VmHWM") - before) / MIB, 1)
            target.forget_peak()
        growth["slow"] = round((target.memory("VmHWM") - before) / MIB, 1)
        slow_s = time.monotonic() - started
    figures |= {
        "body_mib": BODY // MIB,
        "slow_sockets": SLOW,
        "growth_mib": growth,
        "health_answers": len(probe.answers),
        "health_slowest_s": round(probe.slowest_s, 2),
        "slow_ended_after_s": round(slow_s, 1),
    }
    for name, (_, allowed) in ATTACKS.items():
        assert answered[name], name
        assert set(answered[name]) <= allowed, (name, answered[name])
    assert answered["ahead"].count(200) <= PIPELINED + 2
    assert set(slow["head"]) == {408}, slow
    assert set(slow["body"]) == {408}, slow
    assert slow_s >= max(HEAD_S, BODY_S) - 1
    assert max(growth.values()) * MIB <= MOST_GROWTH, list(growth.values())
    assert set(probe.answers) == {200}, probe.answers
    assert target.ask("POST", "/v1/events", events(1)) == 202


@pytest.mark.scenario(20)
@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_who_does_not_read_the_replies_takes_little_and_is_let_go(target: Target, figures: dict[str, Any]) -> None:
    warm(target)
    before = target.memory("VmRSS")
    target.forget_peak()
    with ExitStack() as stack, Probe(target.address) as probe:
        connections = [stack.enter_context(target.connect(receive_buffer=1)) for _ in range(SLOW)]
        for number, connection in enumerate(connections):
            path = ("/metrics", "/openapi.json")[number % 2]
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode() * PIPELINED)
        started, held_by_system = time.monotonic(), []
        while not held_by_system or (held_by_system[-1] and time.monotonic() - started < PATIENCE_S):
            time.sleep(0.5)
            held_by_system.append(target.held_by_system())
        ended_s = time.monotonic() - started
        growth = target.memory("VmHWM") - before
        assert max(len(read(connection)) for connection in connections) < PIPELINED
    figures |= {
        "deaf_sockets": SLOW,
        "deaf_growth_mib": round(growth / MIB, 1),
        "deaf_held_by_system_mib": round(max(held_by_system) / MIB, 1),
        "deaf_ended_after_s": round(ended_s, 1),
    }
    assert growth <= MOST_GROWTH, figures
    assert max(held_by_system) <= SLOW * 2 * SEND_BYTES, figures
    assert held_by_system[-1] == 0, figures
    assert set(probe.answers) == {200}, probe.answers
