"""POST /v1/events, GET /v1/users/{user_id}/events."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from service.access.endpoints import Reader, Writer
from service.errors import FieldError, InvalidRequest
from service.events import service
from service.events.schemas import MAX_BATCH, EventBatch, EventPage, IngestReport
from service.http.bodies import WriteBody, read_json, takes
from service.http.problems import pointer_to
from service.kit.fields import Identifier
from service.wiring import ServicesDep

router = APIRouter(tags=["events"])

UserId = Annotated[Identifier, Path()]


def parse_batch(body: bytes | bytearray) -> list[Any]:
    """The raw events of a request body. Raises InvalidRequest unless it is {"events": [1 to 500 values]}."""
    document = read_json(body)
    if not isinstance(document, dict):
        raise _wrong("", "object_type", 'an object is needed: {"events": [...]}')
    if unknown := sorted(document.keys() - {"events"}):
        raise _wrong(pointer_to(unknown[0]), "extra_forbidden", "this field is not known; only `events` is")
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


@router.post("/v1/events", status_code=202, openapi_extra=takes(EventBatch))
async def post_events(
    services: ServicesDep,
    principal: Writer,
    body: WriteBody,
    validate_only: Annotated[bool, Query(description="Report only; store nothing.")] = False,
) -> IngestReport:
    """Store up to 500 events, durable when this returns. Sending the same event again is safe and counted once.

    Each event is judged alone: a wrong one is listed in `rejected` with its index and a code (invalid_event,
    future_event, event_id_conflict, erased_user) while the others are stored. 503 with Retry-After while the store is
    slower than events come in: send them again then.
    """
    return await services.intake.work(
        lambda: service.ingest(
            services.prompt,
            parse_batch(body),
            clock=services.clock,
            clock_tolerance=services.settings.clock_tolerance,
            validate_only=validate_only,
            on_stored=services.shared.events_stored,
        )
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
