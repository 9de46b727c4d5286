"""GET /v1/admin/windows and POST /v1/admin/windows/close."""

from typing import Annotated

from fastapi import APIRouter, Query

from service.access.endpoints import Admin
from service.audit.refusals import Audited
from service.windows import service
from service.windows.schemas import WindowsView, WindowView
from service.wiring import ServicesDep

router = APIRouter(tags=["admin"], route_class=Audited)


@router.get("/v1/admin/windows")
def list_windows(
    services: ServicesDep,
    principal: Admin,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
) -> WindowsView:
    """Windows newest first, with each update's steps, verdict and evaluations, and the window that is still open."""
    page = service.read_page(services.database, services.settings, limit=limit, before=before)
    return WindowsView.of(page, services.settings)


@router.post("/v1/admin/windows/close")
def close_window(services: ServicesDep, principal: Admin) -> WindowView:
    """Seal the open window now, for the updater to train on. 409 when no event has arrived since the last one."""
    closed = service.close(services.database, services.clock, services.settings, actor=principal.actor)
    return WindowView.of(closed, services.settings)
