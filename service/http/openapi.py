"""The OpenAPI document with what FastAPI cannot know: every failure is a problem, and which ones an operation has."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.encoders import jsonable_encoder
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from service.adapters.schemas import PromoteRequest, RollbackRequest
from service.catalog.schemas import ItemBatch
from service.events.schemas import EventBatch
from service.http.problems import MEDIA_TYPE
from service.recommend.schemas import RecommendationRequest
from service.trials.schemas import TrialRequest

_REFERENCE = "#/components/schemas/"
_BODIES: tuple[type[BaseModel], ...] = (
    EventBatch,
    ItemBatch,
    RecommendationRequest,
    PromoteRequest,
    RollbackRequest,
    TrialRequest,
)
"""Routes read their bodies themselves (service.http.bodies), so the framework knows no schema."""
_FAILURES = {
    400: "The address or a header cannot be read.",
    401: "No key, or one that is unknown, expired or revoked.",
    403: "The key lacks the scope.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    422: "Shape or value of the request is wrong; `errors` says where.",
    429: "Too many requests; Retry-After says when to come back.",
    500: "A defect; the log has it under this request_id.",
    503: "Not available now; Retry-After says when to come back.",
}
"""Of every operation that asks for a key."""
_NOT_FOUND = {404: "There is no such thing."}
_CONFLICT = {409: "The request contradicts the present state."}
_STALE = {412: "If-Match names a revision that is no longer current."}
_RETRIED = frozenset({429, 503})


class Problem(BaseModel):
    """RFC 9457."""

    class Place(BaseModel):
        pointer: str
        code: str
        detail: str

    type: str
    title: str
    status: int
    detail: str
    slug: str
    request_id: str | None
    errors: list[Place]


def document(app: FastAPI) -> dict[str, Any]:
    """The document of `app`."""
    made: dict[str, Any] = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    schemas = made["components"]["schemas"]
    models: tuple[type[BaseModel], ...] = (*_BODIES, Problem)
    for model in models:
        # As the framework writes those that it knows: what is null is left out.
        known = jsonable_encoder(model.model_json_schema(ref_template=_REFERENCE + "{model}"), exclude_none=True)
        schemas |= known.pop("$defs", {}) | {model.__name__: known}
    for path, method, operation in _operations(made):
        for parameter in operation.get("parameters", []):
            parameter["schema"] = _without_null(parameter["schema"])
        if "security" in operation:
            for status, why in _failures(path, method).items():
                operation["responses"][str(status)] = _problem(status, why)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return made


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter may be left out, which FastAPI writes as null; there is no null in an address or a header."""
    kept = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    if len(kept) != 1:
        return schema
    return {name: value for name, value in schema.items() if name != "anyOf"} | dict(kept[0])


def _failures(path: str, method: str) -> dict[int, str]:
    found = dict(_FAILURES)
    if "{" in path or path.endswith("/trial/report"):
        found |= _NOT_FOUND
    if path.startswith("/v1/admin") and method != "get":
        found |= _CONFLICT
        if "adapters" in path or "trial" in path:
            found |= _NOT_FOUND | _STALE
    return found


def _problem(status: int, why: str) -> dict[str, Any]:
    reply: dict[str, Any] = {
        "description": why,
        "content": {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE + Problem.__name__}}},
    }
    if status in _RETRIED:
        reply["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}, "required": True}}
    return reply
