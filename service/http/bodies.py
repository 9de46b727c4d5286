"""Bodies of requests: read after the key was checked, counted while they are held, parsed where there is time.

FastAPI reads the body of a route that names a model before it looks at the key; hence no route does.
"""

import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, TypeAdapter, ValidationError

from service.access.endpoints import Admin, Reader, Writer
from service.errors import InvalidRequest, PayloadTooLarge
from service.http.problems import malformed_body
from service.wiring import ServicesDep

SMALL = 16 * 1024
"""Bytes of a body that is not counted: a request's head may be larger."""

Model = TypeVar("Model", bound=BaseModel)


async def _write_body(request: Request, services: ServicesDep, principal: Writer) -> AsyncIterator[bytearray]:
    with services.intake.place() as place:
        yield await _whole(request, place.add, place.is_whole)


WriteBody = Annotated[bytearray, Depends(_write_body)]
"""The whole body, whose place in the intake is kept until the reply is sent."""


def question(model: type[Model]) -> Any:
    """In Annotated: the body of a route that answers a reader, as `model`."""
    adapter = TypeAdapter(model)

    async def read(request: Request, services: ServicesDep, principal: Reader) -> Model:
        with services.questions.place() as add:
            body = await _whole(request, add)
            try:
                return _parsed(adapter, body, request)
            finally:
                body.clear()

    return Depends(read)


def order(model: type[Model], *, needed: bool = True) -> Any:
    """In Annotated: the small body of an admin's route, as `model`; None for none, where it is not needed."""
    wanted: Any = model if needed else model | None
    adapter: TypeAdapter[Any] = TypeAdapter(wanted)

    async def read(request: Request, principal: Admin) -> Any:
        body = await small(request)
        return _parsed(adapter, body, request) if body or needed else None

    return Depends(read)


async def small(request: Request) -> bytearray:
    """A body of at most SMALL bytes. Raises PayloadTooLarge."""
    size = 0

    def add(more: int) -> None:
        nonlocal size
        size += more
        if size > SMALL:
            raise PayloadTooLarge(f"the body is larger than the {SMALL} bytes that this address takes")

    return await _whole(request, add)


async def _whole(
    request: Request, add: Callable[[int], None], is_whole: Callable[[], None] = lambda: None
) -> bytearray:
    """add: is told the size of each piece that comes, is_whole: that all are there; they raise to refuse."""
    body = bytearray()
    try:
        async for piece in request.stream():
            add(len(piece))
            body += piece
        is_whole()
    except BaseException:
        body.clear()  # the traceback keeps this frame for a while, and a flood has many
        raise
    return body


def _parsed(adapter: TypeAdapter[Model], body: bytearray, request: Request) -> Model:
    """Raises RequestValidationError, with the codes that FastAPI gives."""
    if not body:
        raise RequestValidationError([{"loc": ("body",), "type": "missing", "msg": "Field required"}])
    need_json(request.headers.get("content-type", ""))
    try:
        return adapter.validate_python(read_json(body), from_attributes=True)
    except InvalidRequest as error:  # as FastAPI has it: a matter of shape, which is no refused deed
        raise RequestValidationError([{"loc": ("body",), "type": "json_invalid", "msg": error.detail}]) from None
    except ValidationError as error:
        raise wrong(error) from None


def need_json(content_type: str) -> None:
    """Raises RequestValidationError for a body that does not say that it is JSON."""
    if "json" not in content_type.lower():
        raise RequestValidationError([{"loc": ("body",), "type": "json_type", "msg": "JSON is needed"}])


def read_json(body: bytes | bytearray) -> Any:
    """Raises InvalidRequest for what is no JSON that can be read."""
    try:
        # Not orjson: it would turn integers beyond 64 bits into floats, and refuse a whole batch for one surrogate.
        return json.loads(body)
    except RecursionError:
        raise malformed_body("nested too deeply") from None
    except ValueError as error:
        raise malformed_body(str(error)) from None


def wrong(error: ValidationError) -> RequestValidationError:
    """What a model says about a body, with its places in the body."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in found])


def takes(model: type[BaseModel], *, needed: bool = True) -> dict[str, Any]:
    """`openapi_extra` of a route with a body; the schema has to be one of service.http.openapi's."""
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    schema = reference if needed else {"anyOf": [reference, {"type": "null"}], "title": "Body"}
    body: dict[str, Any] = {"content": {"application/json": {"schema": schema}}}
    return {"requestBody": body | ({"required": True} if needed else {})}
