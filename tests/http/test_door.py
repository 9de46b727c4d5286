"""What the door refuses unparsed is what the parser would have made of the same bytes."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from hypothesis import example, given
from hypothesis import strategies as st
from uvicorn.server import ServerState

from service.http.admission import OTHERS, RECOMMENDATIONS, House
from service.http.door import door
from service.http.protocol import PatientProtocol


class Full:
    """Refuses all. unparsed: also what was not parsed."""

    def __init__(self, *, unparsed: bool) -> None:
        self.is_full, self.refused = unparsed, 0

    def refuses(self, *, expected: bool = False) -> bool:
        self.refused += 1
        return True

    def expect(self) -> None: ...


class Transport:
    """Keeps what was written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> Any:
        return None

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def connected(houses: Any) -> tuple[Any, Transport]:
    """A connection to an application that never answers. All connections of a process are counted: lose it."""

    async def never(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    config = uvicorn.Config(never, log_config=None, access_log=False, lifespan="off", interface="asgi3", ws="none")
    config.load()
    protocol, transport = (
        door(houses, lambda: False)(config=config, server_state=ServerState(), app_state={}),
        Transport(),
    )
    protocol.connection_made(transport)  # type: ignore[arg-type]  # all that a protocol uses
    return protocol, transport


def end_tasks() -> None:
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


def replies_to(chunks: list[bytes], *, unparsed: bool) -> tuple[list[str], bool, int]:
    """Replies without what is drawn for each; whether the connection was closed; how many were refused."""

    async def run() -> tuple[list[str], bool, int]:
        house = Full(unparsed=unparsed)
        protocol, transport = connected({RECOMMENDATIONS: house, OTHERS: house})
        for chunk in chunks:
            if not transport.closed:
                protocol.data_received(chunk)
        written = [_DRAWN.sub("", reply.decode("latin-1")) for reply in transport.written]
        closed = transport.closed
        protocol.connection_lost(None)
        end_tasks()
        return written, closed, house.refused

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def _all_are_lost() -> Iterator[None]:
    yield
    assert not [one for one in PatientProtocol.waiting if isinstance(one.transport, Transport)]


_DRAWN = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|retry-after: \d")

STARTS = [
    "POST /v1/recommendations HTTP/1.1",
    "GET /v1/items/i HTTP/1.1",
    "GET /v1/items/i?x=1 HTTP/1.1",
    "GET /health/live HTTP/1.1",
    "POST /v1/recommendations HTTP/1.0",
    "post /v1/recommendations HTTP/1.1",
    "POST  /v1/recommendations HTTP/1.1",
]
FIELDS = [
    "Host: h",
    "host: 127.0.0.1:80",
    "Authorization: Bearer adk_x",
    "X-Request-ID: r-1",
    "Connection: keep-alive",
    "Connection: close",
    "Connection: upgrade",
    "Upgrade: websocket",
    "Expect: 100-continue",
    "Content-Length: 5",
    "Content-Length: 0",
    "content-length: 11",
    "Content-Length: +5",
    "Content-Length: 5, 5",
    "Content-Length : 5",
    " Content-Length: 5",
    "A: b\nContent-Length: 5",
    "Transfer-Encoding: chunked",
    "A: b\nTransfer-Encoding: chunked",
    "A:",
    "A: ",
    "A: \t",
    "A_b: c",
    "A: \x00",
    "A: \xe4",
    ": a",
    "no colon",
]
HEADS = st.builds(
    lambda start, fields: "\r\n".join((start, *fields, "", "")).encode("latin-1"),
    st.one_of(st.just(STARTS[0]), st.sampled_from(STARTS)),
    st.lists(st.sampled_from(FIELDS), max_size=5),
)
BODIES = st.sampled_from([b"", b"12345", b"12345678901", b"1\r\na\r\n0\r\n\r\n", b"0\r\n\r\n"])


@given(
    st.lists(st.tuples(HEADS, BODIES), min_size=1, max_size=3), st.lists(st.integers(0, 300), max_size=3), st.booleans()
)
@example([(b"POST /v1/recommendations HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n", b"12345")] * 2, [], True)
def test_it_is_refused_as_if_it_had_been_parsed(
    messages: list[tuple[bytes, bytes]], cuts: list[int], each_alone: bool
) -> None:
    whole = [head + body for head, body in messages]
    chunks = whole if each_alone else [b"".join(whole)]
    for cut in cuts:
        chunks = [part for chunk in chunks for part in (chunk[:cut], chunk[cut:]) if part]
    assert replies_to(chunks, unparsed=True) == replies_to(chunks, unparsed=False)


def test_an_ordinary_request_is_not_parsed(monkeypatch: Any) -> None:
    head = b"POST /v1/recommendations HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nUser-Agent: a b\r\n\r\n"
    monkeypatch.setattr("service.http.protocol.PatientProtocol.data_received", _parsed)
    replies, closed, refused = replies_to([head + b"12345"] * 3, unparsed=True)
    assert (len(replies), closed, refused) == (3, False, 3)
    assert all(reply.startswith("HTTP/1.1 503 ") for reply in replies)


def test_those_that_come_in_one_turn_of_the_loop_are_counted_before_they_are_inside() -> None:
    """Or all would be let in to be refused there, at several times the price."""
    request = b"POST /v1/recommendations HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n12345"

    async def run() -> tuple[list[int], list[int]]:
        house = House(RECOMMENDATIONS, 2, 2, 10.0)
        seen = []
        for whole in (True, False):
            connections = [connected({RECOMMENDATIONS: house, OTHERS: house}) for _ in range(4)]
            for protocol, _ in connections:
                protocol.data_received(request if whole else request[:-1])
            seen.append([len(transport.written) for _, transport in connections])
            for protocol, _ in connections:
                protocol.connection_lost(None)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not house.is_full  # nobody came in after all: half a request takes no room
        end_tasks()
        return seen[0], seen[1]

    assert asyncio.run(run()) == ([0, 0, 1, 1], [0, 0, 1, 1])


def _parsed(_protocol: object, data: bytes) -> None:
    raise AssertionError(data)
