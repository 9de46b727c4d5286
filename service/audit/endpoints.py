"""GET /v1/admin/audit."""

from typing import Annotated

from fastapi import APIRouter, Query

from service.access.endpoints import Admin
from service.audit import service
from service.audit.schemas import AuditPage
from service.kit.fields import UUID_PATTERN
from service.wiring import ServicesDep

router = APIRouter(tags=["admin"])


@router.get("/v1/admin/audit")
def read_audit(
    services: ServicesDep,
    principal: Admin,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    before: Annotated[str | None, Query(pattern=UUID_PATTERN)] = None,
) -> AuditPage:
    """Who did what, newest first. Send `next_before` as `before` for the next page."""
    return service.read_page(services.database, limit=limit, before=before)
