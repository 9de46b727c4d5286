"""Admin deeds that were refused leave a row as well: `APIRouter(route_class=Audited)`."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from service.access.schemas import Principal
from service.errors import AdaptideError
from service.wiring import Services

READS = frozenset({"GET", "HEAD"})


class Audited(APIRoute):
    """Routes of a router whose deeds are audited: what is refused to a known key (403, 404, 409, 412) is recorded."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if (self.methods or READS) <= READS:
            return handle

        async def audited(request: Request) -> Response:
            try:
                return await handle(request)
            except AdaptideError as error:
                principal: Principal | None = getattr(request.state, "principal", None)
                if principal is not None and 400 <= error.status < 500:
                    services: Services = request.app.state.services
                    route = f"{request.method} {self.path}"
                    subject = request.path_params.get("version")
                    await run_in_threadpool(services.refusals.record, principal.actor, route, subject, error)
                raise

        return audited
