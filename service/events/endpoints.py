"""POST /v1/events, GET /v1/users/{user_id}/events, DELETE /v1/users/{user_id}."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request

from service.access.endpoints import Reader, Writer
from service.errors import FieldError, InvalidRequest
from service.events import service
from service.events.schemas import MAX_BATCH, Erasure, EventPage, IngestReport
from service.http.problems import malformed_body
from service.kit.fields import Identifier
from service.wiring import ServicesDep

router = APIRouter(tags=["events"])

UserId = Annotated[Identifier, Path()]


async def _body(request: Request, principal: Writer) -> bytes:
    return await request.body()  # after the key was checked


def parse_batch(body: bytes) -> list[Any]:
    """The raw events of a request body. Raises InvalidRequest unless it is {"events": [1 to 500 values]}."""
    try:
        # Not orjson: it would turn integers beyond 64 bits into floats, and refuse the whole batch for one surrogate.
        document = json.loads(body)
    except RecursionError:
        raise malformed_body("nested too deeply") from None
    except ValueError as error:
        raise malformed_body(str(error)) from None
    if not isinstance(document, dict):
        raise _wrong("", "object_type", 'an object is needed: {"events": [...]}')
    if unknown := sorted(document.keys() - {"events"}):
        raise _wrong("/" + unknown[0], "extra_forbidden", "this field is not known; only `events` is")
    if "events" not in document:
        raise _wrong("/events", "missing", "the field `events` is missing")
    events = document["events"]
    if not isinstance(events, list):
        raise _wrong("/events", "list_type", "a list is needed")
    if not 1 <= len(events) <= MAX_BATCH:
        code = "too_short" if not events else "too_long"
        raise _wrong("/events", code, f"1 to {MAX_BATCH} events are taken at once, not {len(events)}")
    return events


def _wrong(pointer: str, code: str, detail: str) -> InvalidRequest:
    return InvalidRequest(f"{pointer or 'body'}: {detail}", errors=[FieldError(pointer, code, detail)])


@router.post(
    "/v1/events",
    status_code=202,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/EventBatch"}}},
        }
    },
)
def post_events(
    services: ServicesDep,
    principal: Writer,
    body: Annotated[bytes, Depends(_body)],
    validate_only: Annotated[bool, Query(description="Report only; store nothing.")] = False,
) -> IngestReport:
    """Store up to 500 events, durable when this returns. Sending the same event again is safe and counted once.

    Each event is judged alone: a wrong one is listed in `rejected` with its index and a code (invalid_event,
    future_event, event_id_conflict) while the others are stored.
    """
    return service.ingest(
        services.prompt,
        parse_batch(body),
        clock=services.clock,
        clock_tolerance=services.settings.clock_tolerance,
        validate_only=validate_only,
        on_stored=services.shared.events_stored,
    )


@router.get("/v1/users/{user_id:path}/events")
def read_events(
    services: ServicesDep,
    principal: Reader,
    user_id: UserId,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    before_seq: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
) -> EventPage:
    """The user's events, newest first. An unknown user has none."""
    return service.history(services.prompt, user_id, limit=limit, before_seq=before_seq)


@router.delete("/v1/users/{user_id:path}")
def erase_user(services: ServicesDep, principal: Writer, user_id: UserId) -> Erasure:
    """Erase everything the store knows of the user: events, so history too, and recommendations. Cannot be undone."""
    return service.erase_user(
        services.database,
        user_id,
        clock=services.clock,
        actor=principal.actor,
        on_erased=services.shared.user_erased,
    )
