"""Load on the recommendation route, made by a process of its own that costs little: plain sockets and one event loop.

`python -m trainer.load FILE` reads a Plan as JSON from standard input and writes a Run as JSON to FILE. Replies are
kept as bytes while the clock runs and read afterwards.
"""

import asyncio
import random
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson
import uvloop

MOST_CONNECTIONS = 256  # of an open loop; requests beyond wait for one, and their latency counts that
IDLE_S = 3.0  # the server closes what is idle for 5 s, perhaps while a request is on its way
DRAIN_S = 30.0  # how long replies may take after the last request was sent


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send. rate 0: closed loop, `concurrency` clients that each send when their reply is there.

    rate: requests a second at random (Poisson) times, whatever comes back. warm_s: sent first and not counted.
    """

    host: str
    port: int
    token: str
    users: list[str]
    limit: int
    seconds: float
    concurrency: int = 1
    rate: float = 0.0
    warm_s: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """latency_ms: from when the request was meant to be sent to its reply's end. status 0: the connection broke."""

    user: str
    sent_s: float
    latency_ms: float
    status: int
    strategy: str | None = None
    version: str | None = None
    items: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Run:
    """What came back. replies: to every counted request. per_second: replies that arrived within the counted time, to
    whichever request. busy: this process's CPU seconds a second.
    """

    replies: list[Reply]
    per_second: float
    busy: float
    most_connections: int


@dataclass(slots=True)
class _Call:
    user: str
    meant: float
    done: float = 0.0
    status: int = 0
    body: bytes = b""


class Client(asyncio.Protocol):
    """One connection, one request at a time; `on_end` is told when the reply is whole or the connection broke."""

    def __init__(self, on_end: "Callable[[Client, _Call], None]") -> None:
        self._on_end = on_end
        self._call: _Call | None = None
        self._received = bytearray()
        self.open = False
        self.used = time.perf_counter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.open = cast(asyncio.Transport, transport), True  # uvloop's is no subclass

    def ask(self, call: _Call, request: bytes) -> None:
        self._call = call
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[:end]).lower()
        start = head.index(b"content-length:") + 15
        length = int(head[start:].split(b"\r\n", 1)[0])
        if len(self._received) < end + 4 + length:
            return
        body = bytes(self._received[end + 4 : end + 4 + length])
        del self._received[: end + 4 + length]
        self._end(int(head[9:12]), body)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._end(0, b"")

    def close(self) -> None:
        self._transport.close()

    def _end(self, status: int, body: bytes) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.done = self.used = time.perf_counter()
            call.status, call.body = status, body
            self._on_end(self, call)


class Load:
    """One run of a Plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._random = random.Random(plan.seed)
        self._requests = {user: _request(plan, user) for user in plan.users}
        self._calls: list[_Call] = []
        self._free: list[Client] = []
        self._waiting: deque[_Call] = deque()
        self._clients = self._most_clients = 0
        self._connecting: set[asyncio.Task[None]] = set()
        self._in_flight = 0
        self._ending = False
        self._idle = asyncio.Event()

    async def run(self) -> Run:
        plan = self._plan
        first = plan.concurrency if not plan.rate else 32
        await asyncio.gather(*(self._connect() for _ in range(first)))
        began = time.perf_counter()
        counted_from, end = began + plan.warm_s, began + plan.warm_s + plan.seconds
        busy_from = time.process_time()
        if plan.rate:
            await self._send_at_rate(began, end)
        else:
            for client in list(self._free):
                self._free.remove(client)
                self._ask(client, self._call(time.perf_counter()))
            await asyncio.sleep(end - time.perf_counter())
        self._ending = True
        if self._in_flight or self._waiting:
            async with asyncio.timeout(DRAIN_S):
                await self._idle.wait()
        busy = (time.process_time() - busy_from) / (time.perf_counter() - began)
        for client in self._free:
            client.close()
        arrived = sum(call.status == 200 and counted_from < call.done <= end for call in self._calls)
        counted = [_reply(call, counted_from) for call in self._calls if call.meant >= counted_from]
        return Run(counted, arrived / plan.seconds, busy, self._most_clients)

    async def _send_at_rate(self, began: float, end: float) -> None:
        at = began
        while True:
            at += self._random.expovariate(self._plan.rate)
            if at >= end:
                return
            pause = at - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
            self._waiting.append(self._call(at))
            self._next()

    async def _connect(self) -> None:
        self._clients += 1
        self._most_clients = max(self._most_clients, self._clients)
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: Client(self._on_end), self._plan.host, self._plan.port)
        self._free.append(client)
        self._next()

    def _call(self, meant: float) -> _Call:
        call = _Call(self._random.choice(self._plan.users), meant)
        self._calls.append(call)
        return call

    def _next(self) -> None:
        while self._waiting and self._free:
            client = self._free.pop()  # the one used last
            if client.open and time.perf_counter() - client.used < IDLE_S:
                self._ask(client, self._waiting.popleft())
            else:
                client.close()
                self._clients -= 1
        if len(self._waiting) > len(self._connecting) and self._clients < MOST_CONNECTIONS:
            task = asyncio.get_running_loop().create_task(self._connect())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    def _ask(self, client: Client, call: _Call) -> None:
        self._in_flight += 1
        client.ask(call, self._requests[call.user])

    def _on_end(self, client: Client, call: _Call) -> None:
        self._in_flight -= 1
        if client.open:
            self._free.append(client)
        else:
            self._clients -= 1
        if self._plan.rate:
            self._next()
        elif not self._ending and client.open:
            self._free.remove(client)
            self._ask(client, self._call(call.done))
        if self._ending and not self._in_flight and not self._waiting:
            self._idle.set()


def _request(plan: Plan, user: str) -> bytes:
    body = orjson.dumps({"user_id": user, "limit": plan.limit})
    head = (
        f"POST /v1/recommendations HTTP/1.1\r\nHost: {plan.host}:{plan.port}\r\nAuthorization: Bearer {plan.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _reply(call: _Call, began: float) -> Reply:
    sent, latency = call.meant - began, 1000 * (call.done - call.meant)
    if call.status != 200:
        return Reply(call.user, sent, latency, call.status)
    found: dict[str, Any] = orjson.loads(call.body)
    version = found["model"]["adapter_version"] if found["model"] else None
    items = found["items"]
    names, scores = [item["item_id"] for item in items], [item["score"] for item in items]
    return Reply(call.user, sent, latency, call.status, found["strategy"], version, names, scores)


def main() -> None:
    plan = Plan(**orjson.loads(sys.stdin.buffer.read()))

    async def run() -> Run:
        return await Load(plan).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(run())
    Path(sys.argv[1]).write_bytes(orjson.dumps(asdict(found)))


if __name__ == "__main__":
    main()
