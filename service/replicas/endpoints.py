"""GET /v1/admin/replicas."""

from fastapi import APIRouter

from service.access.endpoints import Admin
from service.replicas import service
from service.replicas.schemas import ReplicasView
from service.wiring import ServicesDep

router = APIRouter(tags=["admin"])


@router.get("/v1/admin/replicas")
def list_replicas(services: ServicesDep, principal: Admin) -> ReplicasView:
    """Every process that serves, and what it serves. One that was killed is shown as late for up to an hour."""
    return ReplicasView(replicas=service.read_views(services.database, services.clock, services.settings))
