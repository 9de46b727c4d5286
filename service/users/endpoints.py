"""GET /v1/users/{user_id}/export, DELETE /v1/users/{user_id}."""

from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import StreamingResponse

from service.access.endpoints import Admin, Writer
from service.audit.refusals import Audited, AuditedReading
from service.kit.fields import Identifier
from service.users import export, service
from service.users.schemas import Erasure
from service.wiring import ServicesDep

router = APIRouter(tags=["users"], route_class=Audited)
exports = APIRouter(tags=["users"], route_class=AuditedReading)

UserId = Annotated[Identifier, Path()]


@exports.get(
    "/v1/users/{user_id:path}/export",
    response_class=StreamingResponse,
    responses={200: {"content": {export.MEDIA_TYPE: {"schema": {"type": "string"}}}}},
)
def export_user(services: ServicesDep, principal: Admin, user_id: UserId) -> StreamingResponse:
    """Everything that is held on the user, one JSON object a line; the last is of kind `end`, or it was cut off.

    An unknown user has no more than the first and the last line. The audit log notes that it was read.
    """
    lines = export.export_user(
        services.database, services.settings, user_id, clock=services.clock, actor=principal.actor
    )
    return StreamingResponse(lines, media_type=export.MEDIA_TYPE)


@router.delete("/v1/users/{user_id:path}")
def erase_user(services: ServicesDep, principal: Writer, user_id: UserId) -> Erasure:
    """Erase everything the store knows of the user: events, so history too, and recommendations. Cannot be undone.

    Events of the user that occurred until now are refused from now on as `erased_user`.
    """
    return service.erase_user(
        services.database,
        user_id,
        clock=services.clock,
        actor=principal.actor,
        on_erased=services.shared.user_erased,
    )
