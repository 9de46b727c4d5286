"""A burst is let in and a standing queue is not; a refusal is the same from the door and from the application."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.errors import Unavailable
from service.http.admission import OTHERS, RECOMMENDATIONS, AdmissionMiddleware, House, kind_of
from service.http.door import door
from service.settings import Settings
from tests.worlds import eventually

FULL, MOST, PATIENCE_S = 8, 20, 1.0


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time_() -> Time:
    return Time()


@pytest.fixture
def house(time_: Time) -> House:
    return House(RECOMMENDATIONS, FULL, MOST, PATIENCE_S, time_)


def fill(house: House, wanted: int) -> int:
    """How many of them entered."""
    entered = 0
    for _ in range(wanted):
        if not house.refuses():
            house.enter()
            entered += 1
    return entered


def empty(house: House, leaving: int) -> None:
    for _ in range(leaving):
        house.leave()


def test_a_burst_is_let_in_until_the_house_is_full_to_the_roof(house: House) -> None:
    assert fill(house, 50) == MOST


def test_a_queue_that_stands_for_longer_than_the_patience_is_cut_to_what_keeps_the_server_busy(
    house: House, time_: Time
) -> None:
    fill(house, 15)
    time_.now = PATIENCE_S
    assert not house.refuses()
    time_.now += 0.01
    assert house.refuses()
    empty(house, 15 - FULL)
    assert house.refuses()
    empty(house, 1)
    assert fill(house, 5) == 1  # one in for each one out


def test_bursts_are_let_in_again_once_nobody_was_refused_for_as_long_as_the_patience(house: House, time_: Time) -> None:
    fill(house, 15)
    time_.now = PATIENCE_S + 1
    assert house.refuses()
    for pause, entered in ((0.0, FULL), (0.9 * PATIENCE_S, FULL), (1.1 * PATIENCE_S, MOST)):
        empty(house, house.inside)
        time_.now += pause
        assert fill(house, 50) == entered


def test_a_queue_that_comes_and_goes_is_never_cut(house: House, time_: Time) -> None:
    for _ in range(20):
        fill(house, 15)
        time_.now += 0.9 * PATIENCE_S
        assert not house.refuses()
        empty(house, 15)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/recommendations", RECOMMENDATIONS),
        ("/v1/users/a/b/recommendations", RECOMMENDATIONS),
        ("/v1/items/x", OTHERS),
        ("/v1/users/x/events", OTHERS),
        ("/v1/users/x", OTHERS),
        ("/v1/events", None),
        ("/v1/items", None),
        ("/v1/admin/adapters/x/promote", None),
        ("/health/live", None),
        ("/metrics", None),
        ("/docs", None),
        ("/", None),
    ],
)
def test_health_metrics_and_admin_are_never_refused(path: str, kind: str | None) -> None:
    assert kind_of(path) == kind


class Shut(House):
    def __init__(self) -> None:
        super().__init__(OTHERS, 1, 1, 0.0)

    def refuses(self) -> bool:
        return True


SHUT = {RECOMMENDATIONS: Shut(), OTHERS: Shut()}


def test_the_application_refuses_with_a_problem(app: FastAPI, admin: TestClient) -> None:
    app.state.services.houses.update(SHUT)
    key = admin.headers.pop("Authorization")
    for reply in (
        admin.get("/v1/users/u/recommendations"),  # before the key is looked at
        admin.get("/v1/items/i"),
        admin.post("/v1/recommendations", json={"user_id": "u"}, headers={"Authorization": key}),
    ):
        assert (reply.status_code, reply.json()["slug"]) == (503, "unavailable")
        assert 1 <= int(reply.headers["Retry-After"]) <= 3
    assert admin.post("/v1/recommendations", json={"user_id": "u"}).status_code == 401  # its body is not read
    assert admin.get("/v1/admin/audit").status_code == 401
    assert admin.post("/v1/events", json={}).status_code == 401
    assert admin.get("/health/live").status_code == admin.get("/metrics").status_code == 200


def test_a_request_is_inside_from_the_end_of_its_body_to_the_beginning_of_its_reply() -> None:
    house = House(RECOMMENDATIONS, 1, 1, 0.0)
    seen: list[int] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(2):
            await receive()
            seen.append(house.inside)
        await send({"type": "http.response.start"})
        seen.append(house.inside)

    messages = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.request", "body": b"b"}]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        pass

    scope = {"type": "http", "path": "/v1/recommendations", "method": "POST"}
    asyncio.run(AdmissionMiddleware(inner, {RECOMMENDATIONS: house})(scope, receive, send))
    assert seen == [0, 1, 0]
    assert house.inside == 0


def test_one_that_breaks_or_finds_no_room_at_the_end_of_its_body_leaves_nothing_behind() -> None:
    house = House(RECOMMENDATIONS, 1, 1, 0.0)
    house.enter()

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        pass

    scope = {"type": "http", "path": "/v1/recommendations", "method": "POST"}
    with pytest.raises(Unavailable):
        asyncio.run(AdmissionMiddleware(inner, {RECOMMENDATIONS: house})(scope, receive, send))
    assert house.inside == 1


class Gate:
    """What the door asks; open at first."""

    shut = False
    draining = False

    @property
    def is_full(self) -> bool:
        return self.shut

    def refuses(self, *, expected: bool = False) -> bool:
        return self.shut

    def expect(self) -> None: ...


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def address(app: FastAPI, client: TestClient, gate: Gate) -> Iterator[tuple[str, int]]:
    """The application, started by `client`, behind a real server with the door."""
    houses: Any = {RECOMMENDATIONS: gate, OTHERS: gate}
    config = uvicorn.Config(
        app, http=door(houses, lambda: gate.draining), log_config=None, access_log=False, lifespan="off"
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        eventually(lambda: server.started, 20)
        yield listener.getsockname()
        server.should_exit = True
        thread.join(20)


def test_the_door_says_what_the_application_says(
    app: FastAPI, admin: TestClient, gate: Gate, address: tuple[str, int]
) -> None:
    gate.shut = True
    with httpx.Client(base_url=f"http://{address[0]}:{address[1]}", headers={"X-Request-ID": "r-1"}) as browser:
        at_the_door = browser.post("/v1/recommendations", json={"user_id": "u"})
        own = browser.get("/v1/items/i", headers={"X-Request-ID": "not acceptable"})
    app.state.services.houses.update(SHUT)
    inside = admin.post("/v1/recommendations", json={"user_id": "u"}, headers={"X-Request-ID": "r-1"})

    assert at_the_door.status_code == inside.status_code == 503
    assert at_the_door.json() == inside.json()
    assert at_the_door.json()["request_id"] == at_the_door.headers["X-Request-ID"] == "r-1"
    assert len(own.headers["X-Request-ID"]) == 36
    varying = {"retry-after", "date", "server", "content-length"}
    assert {n: v for n, v in at_the_door.headers.items() if n not in varying} == {
        n: v for n, v in inside.headers.items() if n not in varying
    }
    assert 1 <= int(at_the_door.headers["Retry-After"]) <= 3


def test_a_connection_outlives_refusals_and_their_bodies(gate: Gate, address: tuple[str, int]) -> None:
    body = b'{"user_id": "' + b"u" * 30_000 + b'"}'
    head = b"POST /v1/recommendations HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(address, timeout=20) as connection, connection.makefile("rb") as replies:
        for shut, status in ((True, 503), (True, 503), (False, 401), (True, 503), (False, 401)):
            gate.shut = shut
            connection.sendall(head + body[:10_000])
            time.sleep(0.05)  # the refusal is there before the rest of the body
            connection.sendall(body[10_000:])
            assert read_reply(replies)[0] == status


def test_pipelined_requests_are_answered_in_order(gate: Gate, address: tuple[str, int]) -> None:
    gate.shut = True
    asked = [(b"/health/live", 200), (b"/v1/items/i", 503), (b"/health/live", 200), (b"/v1/items/i", 503)]
    with socket.create_connection(address, timeout=20) as connection, connection.makefile("rb") as replies:
        connection.sendall(b"".join(b"GET %s HTTP/1.1\r\nHost: h\r\n\r\n" % path for path, _ in asked))
        statuses = [read_reply(replies)[0] for _ in asked]
    # one that waits for a reply before its own is the application's, which has no key from it
    assert [200, 401, 200, 401] == statuses or statuses == [status for _, status in asked]


@pytest.mark.parametrize("how", ["HTTP/1.0", "Connection: close", "draining"])
def test_a_refusal_closes_the_connection_where_a_reply_would(gate: Gate, address: tuple[str, int], how: str) -> None:
    gate.shut, gate.draining = True, how == "draining"
    version = "1.0" if how == "HTTP/1.0" else "1.1"
    closes = "Connection: close\r\n" if how == "Connection: close" else ""
    with socket.create_connection(address, timeout=20) as connection, connection.makefile("rb") as replies:
        connection.sendall(f"GET /v1/items/i HTTP/{version}\r\nHost: h\r\n{closes}\r\n".encode())
        status, headers = read_reply(replies)
        assert (status, headers["connection"]) == (503, "close")
        assert replies.read() == b""


def test_two_full_batches_of_recommendations_keep_the_server_busy(app: FastAPI, client: TestClient) -> None:
    house = app.state.services.houses[RECOMMENDATIONS]
    for _ in range(2 * Settings().batch_max_requests):
        assert not house.is_full
        house.enter()
    assert house.is_full


def test_the_settings_say_how_long_a_queue_may_stand() -> None:
    assert Settings().queue_patience.total_seconds() < Settings().request_deadline.total_seconds()


def read_reply(replies: Any) -> tuple[int, dict[str, str]]:
    status = int(replies.readline().split()[1])
    headers = {}
    while line := replies.readline().strip():
        name, _, value = line.decode().partition(": ")
        headers[name.lower()] = value
    replies.read(int(headers["content-length"]))
    return status, headers
