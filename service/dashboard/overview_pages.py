"""GET /dashboard, and the two parts of it that it asks for anew."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from service.access.schemas import Scope
from service.dashboard import service
from service.dashboard.pages import HOME, Page, page
from service.dashboard.schemas import Now, Visitor
from service.dashboard.visitors import SomeVisitor
from service.wiring import Services, ServicesDep

router = APIRouter(prefix=HOME, route_class=Page)


@router.get("")
def show(services: ServicesDep, visitor: SomeVisitor) -> Response:
    """What serves now, its traffic, the replicas, the adapters and the last windows."""
    return page("overview.html", here=HOME, now=_now(services), **_registry(services, visitor))


@router.get("/now")
def show_now(services: ServicesDep, visitor: SomeVisitor) -> Response:
    """What serves, how fresh it is, the traffic of this replica, and the others."""
    return page("now.html", now=_now(services))


@router.get("/registry")
def show_registry(services: ServicesDep, visitor: SomeVisitor) -> Response:
    """Adapters and last windows, with the forms that move the pointer."""
    return page("registry.html", **_registry(services, visitor))


def _now(services: Services) -> Now:
    return service.now(
        services.prompt, services.clock, services.settings, services.serving(), services.traffic.summary()
    )


def _registry(services: Services, visitor: Visitor) -> dict[str, Any]:
    found = service.registry(services.prompt, services.settings)
    return {"visitor": visitor, "may_change": visitor.principal.allows(Scope.ADMIN), "registry": found}
