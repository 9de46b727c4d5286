"""GET /v1/admin/adapters[/{version}], POST .../{version}/promote, POST /v1/admin/adapters/rollback."""

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Response

from service.access.endpoints import Admin
from service.access.schemas import Principal
from service.adapters import service
from service.adapters.bus import Change
from service.adapters.moves import MoveRequest
from service.adapters.schemas import (
    ActivationView,
    ActivePointer,
    AdapterDetailView,
    AdapterView,
    PromoteRequest,
    RegistryView,
    RollbackRequest,
)
from service.audit.refusals import Audited
from service.errors import FieldError, InvalidRequest
from service.http.bodies import order, takes
from service.kit.keys import redacted
from service.wiring import ServicesDep

router = APIRouter(tags=["admin"], route_class=Audited)

Version = Annotated[
    str, Path(min_length=1, max_length=64, pattern="^[A-Za-z0-9-]+$", examples=["a000004-3f9c21d07be4"])
]
_ETAG = re.compile(r'"(\d{1,9})"')


def precondition(
    if_match: Annotated[
        str | None,
        Header(
            description='The revision it was decided on, quoted: "7". * : any.',
            json_schema_extra={"pattern": r'^("[0-9]{1,9}"|\*)$'},
        ),
    ] = None,
) -> int | None:
    """The revision in If-Match, None for none or `*`. Raises InvalidRequest for anything else."""
    if if_match is None or if_match.strip() == "*":
        return None
    found = _ETAG.fullmatch(if_match.strip())
    if found is None:
        detail = 'If-Match is a revision in double quotes, such as "7", or *'
        raise InvalidRequest(detail, errors=[FieldError("/header/If-Match", "malformed", detail)])
    return int(found[1])


IfMatch = Annotated[int | None, Depends(precondition)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=128,
        pattern="^[\x21-\x7e]+$",
        description="The same request with the same key is answered with what it did the first time.",
    ),
]


@router.get("/v1/admin/adapters")
def list_adapters(
    services: ServicesDep,
    principal: Admin,
    response: Response,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    before: Annotated[str | None, Query(min_length=1, max_length=64, pattern="^[A-Za-z0-9-]+$")] = None,
) -> RegistryView:
    """Every adapter, newest first, and the pointer to the active one. ETag is the pointer's revision."""
    found = service.read_registry(services.database, limit=limit, before=before)
    response.headers["ETag"] = f'"{found.pointer.revision}"'
    return RegistryView(
        active=ActivePointer.model_validate(found.pointer),
        adapters=[AdapterView.model_validate(adapter) for adapter in found.adapters],
        next_before=found.next_before,
    )


@router.get("/v1/admin/adapters/{version}")
def read_adapter(services: ServicesDep, principal: Admin, response: Response, version: Version) -> AdapterDetailView:
    """One adapter and the moves it took part in. ETag is the pointer's revision."""
    found = service.read_adapter(services.database, version)
    response.headers["ETag"] = f'"{found.revision}"'
    return AdapterDetailView.of(found.adapter, found.active, found.revision, found.history)


@router.post("/v1/admin/adapters/rollback", openapi_extra=takes(RollbackRequest, needed=False))
def rollback(
    services: ServicesDep,
    principal: Admin,
    if_match: IfMatch,
    body: Annotated[RollbackRequest | None, order(RollbackRequest, needed=False)],
    idempotency_key: IdempotencyKey = None,
) -> ActivationView:
    """Go back to what was active before, to `to_version`, or to the base alone; it stays until the next passed window.

    Going back repeatedly goes further back, never forth. Only adapters that have served or passed the gate qualify.
    """
    asked = body or RollbackRequest()
    request = move_request(principal, asked.reason, if_match, idempotency_key)
    done = service.rollback(services.database, services.clock, services.artifacts, request, asked.to_version)
    services.pointer_moved()
    services.shared.announce(Change.POINTER)
    return ActivationView.model_validate(done)


@router.post("/v1/admin/adapters/{version}/promote", openapi_extra=takes(PromoteRequest, needed=False))
def promote(
    services: ServicesDep,
    principal: Admin,
    version: Version,
    if_match: IfMatch,
    body: Annotated[PromoteRequest | None, order(PromoteRequest, needed=False)],
    idempotency_key: IdempotencyKey = None,
) -> ActivationView:
    """Verify an adapter's files and make it the active one, unless the gate refused it or its files are damaged."""
    request = move_request(principal, body.reason if body else None, if_match, idempotency_key)
    done = service.promote(services.database, services.clock, services.artifacts, version, request)
    services.pointer_moved()
    services.shared.announce(Change.POINTER)
    return ActivationView.model_validate(done)


def move_request(principal: Principal, reason: str | None, revision: int | None, key: str | None) -> MoveRequest:
    """Raises InvalidRequest for a key that is a secret."""
    if key is not None and redacted(key) != key:  # it would be stored
        detail = "Idempotency-Key is an API key; send an identifier of this request, such as a UUID"
        raise InvalidRequest(detail, errors=[FieldError("/header/Idempotency-Key", "secret", detail)])
    return MoveRequest(principal.actor, reason, revision, key)
