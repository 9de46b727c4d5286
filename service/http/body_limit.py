"""Refuses a body above the limit, or one that takes too long, before anything parses it; chunks are counted."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import AdaptideError, PayloadTooLarge, RequestTimeout
from service.http.problems import problem_of

BODY_S = 15.0
"""A body has to be whole this long after its first read: 1 MiB at 560 kbit/s."""


class BodyLimitMiddleware:
    """413 for a body of more than `limit` bytes, of which no more than that and one network chunk is ever held; 408 for
    one that is not there within `seconds`.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float = BODY_S) -> None:
        self.app, self.limit, self.seconds = app, limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if declared.isdigit() and int(declared[:20]) > self.limit:
            await problem_of(scope, self._too_large())(scope, receive, send)
            return
        refusal: AdaptideError | None = None
        received, whole, started = 0, False, False
        until: float | None = None

        async def counted() -> Message:
            nonlocal received, whole, refusal, until
            if whole:  # what is left to come is the client's end, for which it may take its time
                return await receive()
            until = until or asyncio.get_running_loop().time() + self.seconds
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                refusal = RequestTimeout(f"the body was not there after {self.seconds:g} seconds")
                raise refusal from None
            received += len(message.get("body", b""))
            if received > self.limit:
                refusal = self._too_large()
                raise refusal
            whole = not message.get("more_body", False)
            return message

        async def guarded(message: Message) -> None:
            nonlocal started
            if refusal is not None and not started:
                return  # whatever the framework makes of the failure, the reply is the refusal below
            started = True
            await send(message)

        try:
            await self.app(scope, counted, guarded)
        except Exception:
            if refusal is None or started:
                raise
        if refusal is not None and not started:
            await problem_of(scope, refusal)(scope, receive, send)

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body is larger than {self.limit} bytes; send smaller batches")
