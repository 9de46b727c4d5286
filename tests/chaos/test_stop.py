"""A replica that is told to stop answers what it was asked, whoever asks however slowly, and is gone within 25 s."""

import contextlib
import http.client
import json
import select
import shutil
import signal
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from service.events.tables import events
from tests import worlds
from tests.built import BuiltWorld
from tests.chaos.scenarios import sized
from tests.chaos.served import HOST, USERS, Served, World, nursery
from tests.conftest import PostgresStore
from tests.proxies import pausable

pytestmark = [pytest.mark.scenario(16), pytest.mark.e2e]

WITHIN_S = 25.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, _sqlite_template: Path, built_world: BuiltWorld) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("stop")
    shutil.copy(_sqlite_template, folder / "adaptide.db")
    with nursery(folder) as made:
        world = World(made, folder, f"sqlite:///{folder / 'adaptide.db'}", built_world)
        yield world
        world.close()


class Clients:
    """As a balancer does: connections are kept, closed when a reply says so, looked at before they are used again, and
    only a refused one is no failure: then the request would go to another replica, and here the client ends.
    """

    def __init__(self, served: Served, count: int = 6) -> None:
        self._served = served
        self.statuses: Counter[int] = Counter()
        self.dropped: list[str] = []
        self.acknowledged: list[str] = []
        self._given_up = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(count)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if failed:  # then nothing may have stopped the service
            self._given_up.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, number: int) -> None:
        connection = http.client.HTTPConnection(HOST, self._served.port, timeout=30)
        turn = 0
        while not self._given_up.is_set():
            turn += 1
            if connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:
                connection.close()  # by the other end, while it was idle
            if connection.sock is None:
                try:
                    connection.connect()
                except ConnectionRefusedError:
                    return
            try:
                self._turn(connection, turn, USERS[(turn * 7 + number) % len(USERS)])
            except (http.client.HTTPException, OSError) as error:
                self.dropped.append(repr(error))
                return

    def _turn(self, connection: http.client.HTTPConnection, turn: int, user: str) -> None:
        headers = {"Authorization": f"Bearer {self._served.token}", "Content-Type": "application/json"}
        event = worlds.event(str(uuid.uuid4()), user, worlds.item_id(turn), worlds.START, "impression")
        if turn % 2:
            connection.request("POST", "/v1/events", json.dumps({"events": [event]}), headers)
        else:
            connection.request("GET", f"/v1/users/{user}/recommendations", headers=headers)
        reply = connection.getresponse()
        body = json.loads(reply.read())
        self.statuses[reply.status] += 1
        if reply.status == 202:
            self.acknowledged.append(event["event_id"])
        elif reply.status == 200:
            assert body["items"]


def stop(served: Served) -> float:
    """Seconds from SIGTERM to the end, which must be a good one."""
    began = time.monotonic()
    served.process.signal(signal.SIGTERM)
    status = served.process.wait(WITHIN_S)
    assert status == 0, f"{status}\n{served.log[-5000:]}"
    return time.monotonic() - began


@pytest.mark.timeout(sized(300, 3600))
def test_no_request_is_dropped_when_the_service_is_stopped_under_load(world: World, figures: dict[str, Any]) -> None:
    taken, statuses, dropped, acknowledged = [], Counter[int](), [], []
    for turn in range(sized(3, 20)):
        with world.serve(DRAIN=("0", "1")[turn % 2]) as served:
            with Clients(served) as clients:
                time.sleep(1)
                if turn % 3 == 2:  # a second signal hastens nothing
                    threading.Timer(0.2, served.process.signal, [signal.SIGTERM]).start()
                taken.append(stop(served))
        statuses += clients.statuses
        dropped += clients.dropped
        acknowledged += clients.acknowledged
    figures |= {"stops": len(taken), "replies": statuses.total(), "dropped": len(dropped), "longest_s": max(taken)}
    figures["longest_s"] = round(max(taken), 1)
    assert dropped == []
    assert set(statuses) <= {200, 202}, statuses
    assert min(statuses[200], statuses[202]) > len(taken)
    with world.database.read() as connection:
        stored = set(connection.scalars(sa.select(events.c.event_id).where(events.c.event_id.in_(acknowledged))))
    assert stored == set(acknowledged)


@pytest.mark.timeout(sized(300, 3600))
def test_slow_clients_idle_connections_and_a_long_admin_request_get_their_replies(
    world: World, figures: dict[str, Any]
) -> None:
    with world.serve() as served, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection((HOST, served.port), timeout=30)) for _ in range(20)]
        for connection in idle[:10]:
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: h\r\n\r\n")
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
        pool = stack.enter_context(ThreadPoolExecutor(2))
        holder = stack.enter_context(contextlib.ExitStack())
        holder.enter_context(world.database.write())  # the one that writes
        long = pool.submit(served.client.post, f"/v1/admin/adapters/{world.built.adapter_version}/promote")
        slow = pool.submit(read_slowly, served, 2.0)
        time.sleep(0.5)
        threading.Timer(2.0, holder.close).start()
        seconds = stop(served)
        assert long.result(1).status_code in (200, 409), long.result(1).text
        head, _, body = slow.result(30).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert json.loads(body)["info"]["title"] == "Adaptide"
        assert all(connection.recv(4096) is not None for connection in idle)
    figures["seconds"] = round(seconds, 1)


def read_slowly(served: Served, seconds: float) -> bytes:
    """The largest document there is, a little at a time, into as small a buffer as the system allows."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.settimeout(30)
        connection.connect((HOST, served.port))
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        received = b""
        until = time.monotonic() + seconds
        while data := connection.recv(1024 if time.monotonic() < until else 65_536):
            received += data
            if time.monotonic() < until:
                time.sleep(0.05)
        return received


@pytest.mark.timeout(sized(300, 3600))
def test_a_service_that_is_still_loading_its_model_ends_well(world: World, figures: dict[str, Any]) -> None:
    taken = []
    for turn in range(sized(2, 10)):
        with world.serve(ready=False) as served:
            served.until("it listens", lambda served=served: "listens on" in served.log or None, 120)
            time.sleep(0.1 * turn)
            taken.append(stop(served))
    figures |= {"stops": len(taken), "longest_s": round(max(taken), 1)}


def _unknown(one: "Future[httpx.Response]") -> bool:
    """Whether the client was left without an answer to whether it was done: cut off, or a server error."""
    return isinstance(one.exception(30), httpx.TransportError) or one.result().is_server_error


@pytest.mark.postgres
@pytest.mark.timeout(sized(300, 3600))
def test_a_database_that_hangs_does_not_hold_the_stop_up(
    tmp_path: Path,
    _postgres: PostgresStore,  # noqa: PT019
    built_world: BuiltWorld,
    figures: dict[str, Any],
) -> None:
    where = make_url(_postgres.url)
    with pausable(where.host or HOST, where.port or 5432) as proxy, nursery(tmp_path) as made:
        world = World(made, tmp_path, _postgres.url, built_world)
        world.url = where.set(host=HOST, port=proxy.port).render_as_string(hide_password=False)
        with world.serve() as served, ThreadPoolExecutor(8) as pool:
            proxy.pause()
            asked = [pool.submit(served.client.post, "/v1/recommendations", json={"user_id": u}) for u in USERS[:5]]
            # waits for the database until the service is made to end, which a small test has no time for
            promote = f"/v1/admin/adapters/{world.built.adapter_version}/promote"
            hung = [pool.submit(served.client.post, promote) for _ in range(sized(0, 3))]
            time.sleep(0.3)
            figures["seconds"] = round(stop(served), 1)
            assert [one.result(1).status_code for one in asked] == [200] * 5
            assert all(_unknown(one) for one in hung)
            proxy.go_on()
        world.close()
    _postgres.reset()
