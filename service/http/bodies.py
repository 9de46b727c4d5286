"""Bodies of requests that write: read after the key was checked and within the intake, parsed where there is time."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, Request

from service.access.endpoints import Writer
from service.http.problems import malformed_body
from service.wiring import ServicesDep


async def _body(request: Request, services: ServicesDep, principal: Writer) -> AsyncIterator[bytearray]:
    body = bytearray()
    with services.intake.place() as place:
        try:
            async for piece in request.stream():
                place.add(len(piece))
                body += piece
            place.is_whole()
        except BaseException:
            body.clear()  # the traceback keeps this frame for a while, and a flood has many
            raise
        yield body


WriteBody = Annotated[bytearray, Depends(_body)]
"""The whole body, whose place in the intake is kept until the reply is sent."""


def read_json(body: bytes | bytearray) -> Any:
    """Raises InvalidRequest for what is no JSON that can be read."""
    try:
        # Not orjson: it would turn integers beyond 64 bits into floats, and refuse a whole batch for one surrogate.
        return json.loads(body)
    except RecursionError:
        raise malformed_body("nested too deeply") from None
    except ValueError as error:
        raise malformed_body(str(error)) from None
