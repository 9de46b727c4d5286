"""The dependency that lets a request in: `Depends(Require(Scope.READ))`."""

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Require:
    """A dependency that returns the Principal; 401 without a good key, 403 when the key lacks `scope`."""

    scope: Scope

    async def __call__(self, request: Request, credentials: Credentials) -> Principal:
        if credentials is None:
            raise Unauthenticated("a valid API key is needed: Authorization: Bearer KEY")
        services = await services_of(request)  # one dependency less to resolve for every request
        token = credentials.credentials
        found = services.access.remembered(token)
        if found is None:
            found = await run_in_threadpool(services.access.authenticate, token, self.scope)
        structlog.contextvars.bind_contextvars(key_id=found.key_id)
        request.state.principal = found  # for what is said about the request later (service/audit/refusals.py)
        if not found.allows(self.scope):
            raise Forbidden("this API key may not do this")
        return found


Reader = Annotated[Principal, Depends(Require(Scope.READ))]
Writer = Annotated[Principal, Depends(Require(Scope.WRITE))]
Admin = Annotated[Principal, Depends(Require(Scope.ADMIN))]
