"""GET /v1/admin/replicas."""

from dataclasses import asdict

from fastapi import APIRouter

from service.access.endpoints import Admin
from service.replicas import service
from service.replicas.schemas import ReplicasView, ReplicaView
from service.wiring import ServicesDep

router = APIRouter(tags=["admin"])


@router.get("/v1/admin/replicas")
def list_replicas(services: ServicesDep, principal: Admin) -> ReplicasView:
    """Every process that serves, and what it serves. One that was killed is shown as late for up to an hour."""
    patience = service.LATE_AFTER * services.settings.heartbeat_interval
    now = services.clock()
    found = service.read_all(services.database)
    return ReplicasView(replicas=[ReplicaView(**asdict(r), late=now - r.seen_at > patience) for r in found])
