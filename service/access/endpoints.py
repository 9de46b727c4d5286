"""The dependency that lets a request in: `Depends(require(Scope.READ))`."""

from collections.abc import Awaitable, Callable
from typing import Annotated

import structlog
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from service.access.schemas import Principal, Scope
from service.errors import Forbidden, Unauthenticated
from service.wiring import services_of

_bearer = HTTPBearer(auto_error=False, scheme_name="API key", description="A key made by `adaptide keys create`.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


def require(scope: Scope) -> Callable[[Request, Credentials], Awaitable[Principal]]:
    """A dependency that returns the Principal; 401 without a good key, 403 when the key lacks `scope`."""

    async def principal(request: Request, credentials: Credentials) -> Principal:
        if credentials is None:
            raise Unauthenticated("a valid API key is needed: Authorization: Bearer KEY")
        services = await services_of(request)  # one dependency less to resolve for every request
        token = credentials.credentials
        found = services.access.remembered(token)
        if found is None:
            found = await run_in_threadpool(services.access.authenticate, token)
        structlog.contextvars.bind_contextvars(key_id=found.key_id)
        if not found.allows(scope):
            raise Forbidden("this API key may not do this")
        return found

    return principal


Reader = Annotated[Principal, Depends(require(Scope.READ))]
Writer = Annotated[Principal, Depends(require(Scope.WRITE))]
Admin = Annotated[Principal, Depends(require(Scope.ADMIN))]
