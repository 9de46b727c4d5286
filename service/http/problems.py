"""Every failure as RFC 9457 problem+json: type, title, status, detail, slug, request_id, errors.

An entry of `errors` has a JSON pointer into the body ("" is the whole body); a wrong parameter is named
/query/NAME, /path/NAME or /header/NAME.
"""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import AdaptideError, FieldError, InvalidRequest, PayloadTooLarge, StoreUnavailable
from service.kit.fields import shown
from service.kit.keys import redacted
from service.telemetry import UNEXPECTED_ERRORS

MEDIA_TYPE = "application/problem+json"
_MOST_ERRORS = 100  # a reply names at most this many places

log = structlog.get_logger(__name__)


def problem(
    scope: Scope,
    *,
    slug: str,
    status: int,
    title: str,
    detail: str,
    errors: Sequence[FieldError] = (),
    retry_after: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The reply for one failure. 429 and 503 always carry Retry-After (seconds), 401 always WWW-Authenticate."""
    body: dict[str, Any] = {
        "type": f"urn:adaptide:problem:{slug}",
        "title": title,
        "status": status,
        "detail": redacted(shown(detail)),
        "slug": slug,
        "request_id": scope.get("state", {}).get("request_id"),
        "errors": [
            {"pointer": redacted(shown(error.pointer)), "code": error.code, "detail": redacted(shown(error.detail))}
            for error in errors[:_MOST_ERRORS]
        ],
    }
    sent = dict(headers or {})
    if status in (429, 503):
        sent["Retry-After"] = str(retry_after or 1)
    if status == 401:
        sent["WWW-Authenticate"] = "Bearer"
    if status in (408, 413):
        sent["Connection"] = "close"  # the rest of the body is not read
    return Response(json.dumps(body), status, sent, MEDIA_TYPE)


def problem_of(scope: Scope, error: AdaptideError) -> Response:
    """The reply for an expected failure; what only the operator may know is logged and not sent."""
    detail = error.detail
    if isinstance(error, StoreUnavailable):
        log.warning("store_unavailable", detail=error.detail)
        detail = "the store did not answer; try again"
    elif error.status == 500:
        log.error("request_failed", slug=error.slug, detail=error.detail, exc_info=error)
        detail = "the server could not do this; its log has the reason under this request_id"
    return problem(
        scope,
        slug=error.slug,
        status=error.status,
        title=error.title,
        detail=detail,
        errors=error.errors,
        retry_after=error.retry_after,
    )


def install(app: FastAPI) -> None:
    """Answer the framework's failures and ours as problems."""
    app.add_exception_handler(AdaptideError, _expected)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _framework)


async def _expected(request: Request, error: Exception) -> Response:
    assert isinstance(error, AdaptideError)  # noqa: S101  # registered for this class
    return problem_of(request.scope, error)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  # registered for this class
    errors = field_errors(error.errors())
    detail = "; ".join(f"{found.pointer or 'body'}: {found.detail}" for found in errors[:3])
    if "json" not in request.headers.get("content-type", "") and any(found.pointer == "" for found in errors):
        detail = "the body is read as JSON: send Content-Type: application/json"
    return problem_of(request.scope, InvalidRequest(detail, errors=errors))


def field_errors(found: Sequence[Mapping[str, Any]]) -> list[FieldError]:
    """pydantic's error list as pointers and stable codes (pydantic's error types)."""
    errors = []
    for entry in found:
        place = tuple(entry["loc"])
        if entry["type"] == "json_invalid":
            place = ("body",)  # pydantic and FastAPI put a character offset here
        if place[:1] == ("body",):
            place = place[1:]
        errors.append(FieldError(pointer_to(*place), entry["type"], entry["msg"].removeprefix("Value error, ")))
    return errors


def pointer_to(*place: str | int) -> str:
    """The JSON pointer (RFC 6901) of a place in a document."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in place)


async def _framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  # registered for this class
    scope, cause = request.scope, error.__cause__
    if isinstance(cause, AdaptideError):
        return problem_of(scope, cause)
    if isinstance(cause, RecursionError):
        return problem_of(scope, malformed_body("nested too deeply"))
    if error.status_code == 400 and isinstance(cause, ValueError):
        return problem_of(scope, malformed_body("not UTF-8 or a number with too many digits"))
    if error.status_code == 413:
        return problem_of(scope, PayloadTooLarge("the body is larger than this server accepts"))
    try:
        phrase = HTTPStatus(error.status_code).phrase
    except ValueError:
        phrase = "Error"
    details = {404: "there is nothing at this address", 405: "this address does not take this method"}
    return problem(
        scope,
        slug=phrase.lower().replace(" ", "_").replace("-", "_"),
        status=error.status_code,
        title=phrase,
        detail=details.get(error.status_code, str(error.detail)),
        headers=error.headers,
    )


def malformed_body(why: str) -> InvalidRequest:
    """The failure for a body that is no JSON that can be read."""
    detail = f"the body is not readable JSON: {why}"
    return InvalidRequest(detail, errors=[FieldError("", "json_invalid", detail)])


class ProblemsMiddleware:
    """Answers what nobody expected with 500, and logs it; nothing of the failure itself is sent."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except ClientDisconnect:
            if started:
                raise
            return  # nobody is there to be answered
        except Exception as error:
            if isinstance(error, AdaptideError) and not started:
                await problem_of(scope, error)(scope, receive, send)
                return
            UNEXPECTED_ERRORS.inc()
            log.error("request_crashed", exc_info=error)
            if started:
                raise  # half a reply is on the wire: only closing the connection tells the client
            reply = problem(
                scope,
                slug="internal",
                status=500,
                title="Internal error",
                detail="an unexpected failure; the server's log has it under this request_id",
            )
            await reply(scope, receive, send)
