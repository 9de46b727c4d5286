"""A query parameter has one value: which of two would count is for no client to guess."""

from collections import Counter
from urllib.parse import parse_qsl

from fastapi.dependencies.utils import get_flat_params
from fastapi.params import Query
from fastapi.routing import APIRoute
from starlette.requests import Request

from service.errors import FieldError, InvalidRequest
from service.http.problems import pointer_to


async def each_once(request: Request) -> None:
    """Raises InvalidRequest when a parameter that the route reads is given more than once; others are ignored."""
    query: bytes = request.scope["query_string"]
    route = request.scope.get("route")
    if b"&" not in query or not isinstance(route, APIRoute):
        return
    read = {field.alias for field in get_flat_params(route.dependant) if isinstance(field.field_info, Query)}
    given = Counter(name for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True))
    errors = [
        FieldError(pointer_to("query", name), "repeated", "it is given more than once")
        for name in sorted(read)
        if given[name] > 1
    ]
    if errors:
        detail = f"{errors[0].pointer}: {errors[0].detail}: send one value"
        raise InvalidRequest(detail, errors=errors)
