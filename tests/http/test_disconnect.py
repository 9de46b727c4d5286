"""A client that goes away takes its work with it, and nobody is troubled by that."""

import asyncio

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from service.http.disconnect import unless_gone
from service.http.problems import ProblemsMiddleware

SCOPE: Scope = {"type": "http", "method": "GET", "path": "/", "headers": []}


def test_the_work_is_cancelled_when_the_client_goes() -> None:
    async def run() -> list[str]:
        told: list[str] = []
        left = asyncio.Event()

        async def work() -> None:
            told.append("began")
            left.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                told.append("cancelled")
                raise

        async def receive() -> Message:
            await left.wait()
            return {"type": "http.disconnect"}

        with pytest.raises(ClientDisconnect):
            await unless_gone(Request(SCOPE, receive), work())
        await asyncio.sleep(0)
        return told

    assert asyncio.run(run()) == ["began", "cancelled"]


def test_a_client_that_stays_gets_what_the_work_returns_or_raises() -> None:
    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def returns() -> int:
        return 7

    async def fails() -> int:
        raise ValueError("its own")

    async def run() -> int:
        with pytest.raises(ValueError, match="its own"):
            await unless_gone(Request(SCOPE, receive), fails())
        return await unless_gone(Request(SCOPE, receive), returns())

    assert asyncio.run(run()) == 7


def test_nothing_is_sent_to_a_client_that_has_gone() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ClientDisconnect

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    asyncio.run(ProblemsMiddleware(app)(SCOPE, receive, send))
    assert sent == []
