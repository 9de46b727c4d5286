"""Deeds that were refused leave a row as well: `APIRouter(route_class=Audited)`."""

import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from service.access.schemas import Principal
from service.errors import AdaptideError
from service.wiring import Services

NAMES = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
"""What a version may look like; anything else is a caller's text, which the log neither holds nor can."""
READS = frozenset({"GET", "HEAD"})
REFUSED = frozenset({403, 404, 409, 412, 422})
"""What the framework says about the shape of a request is no AdaptideError, and no refusal."""


class Audited(APIRoute):
    """Routes of a router whose deeds are audited: what is refused to a known key is recorded."""

    reads = False
    """Whether to read is a deed here."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if not self.reads and (self.methods or READS) <= READS:
            return handle

        async def audited(request: Request) -> Response:
            try:
                return await handle(request)
            except AdaptideError as error:
                principal: Principal | None = getattr(request.state, "principal", None)
                if principal is not None and error.status in REFUSED:
                    services: Services = request.app.state.services
                    route = f"{request.method} {self.path}"
                    subject = request.path_params.get("version")
                    if subject is not None and not NAMES.fullmatch(subject):  # refused before anybody looked at it
                        subject = None
                    await run_in_threadpool(services.refusals.record, principal.actor, route, subject, error)
                raise

        return audited


class AuditedReading(Audited):
    """Routes that show so much that to ask for it is a deed."""

    reads = True
