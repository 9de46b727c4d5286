"""The client against the OpenAPI document: no route, parameter or field of it that the client does not know."""

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from service.client import NEVER, AsyncClient, Client, models
from service.http import client_source
from service.http.reference import current_document
from tests.docs.pages import DOCS

ARGUMENTS: dict[str, Any] = {
    "user_id": "u/1",
    "item_id": "i 1",
    "version": "a000001-0123456789ab",
    "to_version": "base",
    "reason": "tried",
    "revision": 7,
    "idempotency_key": "key-1",
    "limit": 9,
    "before_seq": 3,
    "validate_only": True,
    "events": [models.Event(user_id="u", item_id="i", event_type="click")],
    "items": [models.Item(item_id="i", title="t")],
    "wanted": models.RecommendationRequest(user_id="u"),
    "since": datetime(2026, 3, 1, tzinfo=UTC),
    "until": datetime(2026, 3, 2, tzinfo=UTC),
    "horizon_hours": 24.0,
}
OWN = {
    "list_windows": {"before": 5},
    "start_trial": {"wanted": models.TrialRequest(adapter_version="a000001-0123456789ab", kind="canary", share=0.1)},
}
"""Of methods whose argument of that name is another thing."""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return current_document()


@pytest.fixture(scope="module")
def sent(document: dict[str, Any]) -> list[tuple[str, httpx.Request, Any]]:
    """Every method called with every argument: its name, the request that it made and what it returned."""
    found: list[tuple[str, httpx.Request, Any]] = []
    last: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        last.append(request)
        operation = operation_of(document, request)
        if operation is None:
            raise AssertionError(f"{request.method} {request.url.path} is not in the document")
        status, reply = next((s, r) for s, r in operation["responses"].items() if s < "3")
        content = reply.get("content", {})
        if "application/json" in content:
            return httpx.Response(int(status), json=example(content["application/json"]["schema"], document))
        return httpx.Response(int(status), text='{"kind": "end"}\n')

    with Client("http://server", transport=httpx.MockTransport(answer), retries=NEVER) as client:
        for name, method in methods(Client):
            names = list(inspect.signature(method).parameters)[1:]
            arguments = {one: ARGUMENTS.get(one, "x") for one in names} | OWN.get(name, {})
            result = getattr(client, name)(**arguments)
            found.append((name, last[-1] if not inspect.isgenerator(result) else request_of(result, last), result))
    return found


def request_of(result: Iterator[Any], last: list[httpx.Request]) -> httpx.Request:
    list(result)
    return last[-1]


def methods(client: type[Any]) -> list[tuple[str, Any]]:
    return [
        (name, method)
        for name, method in inspect.getmembers(client, inspect.isfunction)
        if not name.startswith("_") and name not in ("close", "aclose")
    ]


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, made in document["paths"].items():
        for method, operation in made.items():
            yield method.upper(), path, operation


def operation_of(document: dict[str, Any], request: httpx.Request) -> dict[str, Any] | None:
    path = request.url.raw_path.decode().partition("?")[0]
    matching = [
        (operation, known)
        for method, known, operation in operations(document)
        if method == request.method and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", known), path)
    ]
    return min(matching, key=lambda pair: pair[1].count("{"))[0] if matching else None


def resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def example(schema: dict[str, Any], document: dict[str, Any]) -> Any:
    """A value of this schema with every field in it."""
    schema = resolved(schema, document)
    if "anyOf" in schema:
        return example(next(one for one in schema["anyOf"] if one.get("type") != "null"), document)
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("format") == "date-time":
        return "2026-03-01T12:00:00Z"
    match schema.get("type"):
        case "object":
            known = {name: example(field, document) for name, field in schema.get("properties", {}).items()}
            more = schema.get("additionalProperties")
            return known or ({"x": example(more, document)} if isinstance(more, dict) else {"x": 1})
        case "array":
            return [example(one, document) for one in schema.get("prefixItems", [schema.get("items", {})])]
        case "integer":
            return 1
        case "number":
            return 1.5
        case "boolean":
            return True
    return "x"


def test_the_generated_files_are_those_of_this_document(document: dict[str, Any]) -> None:
    again = "run python -m service.http.client_source"
    assert (client_source.FOLDER / "models.py").read_text() == client_source.models(document), again
    assert (client_source.FOLDER / "synchronous.py").read_text() == client_source.synchronous(), again


def test_every_route_has_a_method(document: dict[str, Any], sent: list[tuple[str, httpx.Request, Any]]) -> None:
    reached = [operation_of(document, request) for _, request, _ in sent]
    missing = [f"{method} {path}" for method, path, operation in operations(document) if operation not in reached]
    assert missing == [], "write a method of AsyncClient (service/client/asynchronous.py) for each"


def test_every_parameter_and_field_of_a_request_is_sent(
    document: dict[str, Any], sent: list[tuple[str, httpx.Request, Any]]
) -> None:
    for name, request, _ in sent:
        operation = operation_of(document, request)
        assert operation is not None
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "query":
                assert parameter["name"] in request.url.params, (name, parameter["name"])
            if parameter["in"] == "header":
                assert parameter["name"].lower() in request.headers, (name, parameter["name"])
        assert ("requestBody" in operation) == bool(request.content), name


def test_every_body_has_the_fields_of_its_schema_and_those_that_are_required(
    document: dict[str, Any], sent: list[tuple[str, httpx.Request, Any]]
) -> None:
    bodies = [(request, json.loads(request.content)) for _, request, _ in sent if request.content]
    assert len(bodies) > 5
    for request, body in bodies:
        operation = operation_of(document, request)
        assert operation is not None
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        compare(body, schema, document, request.url.path)
        if "reason" in body:  # of a body that a method makes of its arguments: each has been given
            whole = resolved(schema["anyOf"][0] if "anyOf" in schema else schema, document)
            assert body.keys() == whole["properties"].keys()


def test_what_is_sent_has_every_field_and_requires_the_same(document: dict[str, Any]) -> None:
    """Models of requests, whole: a field that the document has and a model lacks could never be sent."""
    reached: set[str] = set()
    for _, _, operation in operations(document):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            reached |= schemas_of(content["schema"], document)
    assert {"Event", "Item", "Filters", "RecommendationRequest", "TrialRequest"} <= reached
    for name in sorted(reached - {"EventBatch", "ItemBatch"}):
        schema = document["components"]["schemas"][name]
        if "properties" not in schema:
            continue
        known = fields(getattr(models, name))
        assert {field.name for field in known} == schema["properties"].keys(), name
        made = {name for kind, name in client_source.MADE_HERE if kind == schema.get("title", name)}
        required = {field.name for field in known if field.default is MISSING and field.default_factory is MISSING}
        assert required | made == set(schema.get("required", ())) | made, name


def compare(value: Any, schema: dict[str, Any], document: dict[str, Any], where: str) -> None:
    """`value` has no field that its schema lacks, and every one that is required."""
    schema = resolved(schema, document)
    for several in ("anyOf", "oneOf"):
        if several in schema:
            schema = next((resolved(one, document) for one in schema[several] if one.get("type") != "null"), schema)
    if isinstance(value, dict) and "properties" in schema:
        assert value.keys() <= schema["properties"].keys(), where
        assert set(schema.get("required", ())) <= value.keys(), where
        for name, inner in value.items():
            compare(inner, schema["properties"][name], document, f"{where}/{name}")
    if isinstance(value, list):
        for inner in value:
            compare(inner, schema.get("items", {}), document, where)


def schemas_of(schema: Any, document: dict[str, Any]) -> set[str]:
    """Names of the schemas that `schema` refers to, and those that they do."""
    if isinstance(schema, list):
        return set().union(*(schemas_of(one, document) for one in schema))
    if not isinstance(schema, dict):
        return set()
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return {name} | schemas_of(document["components"]["schemas"][name], document)
    return set().union(*(schemas_of(one, document) for one in schema.values()))


def test_every_field_of_a_reply_has_its_type(
    document: dict[str, Any], sent: list[tuple[str, httpx.Request, Any]]
) -> None:
    for name, request, result in sent:
        operation = operation_of(document, request)
        assert operation is not None
        reply = next(r for s, r in operation["responses"].items() if s < "3")
        schema = reply.get("content", {}).get("application/json", {}).get("schema")
        if schema is None:
            continue
        assert is_dataclass(result), name
        assert {field.name for field in fields(result)} == resolved(schema, document)["properties"].keys(), name


def test_an_id_with_a_slash_stays_one_part_of_the_address(sent: list[tuple[str, httpx.Request, Any]]) -> None:
    (erased,) = [request for name, request, _ in sent if name == "erase_user"]
    assert erased.url.raw_path == b"/v1/users/u%2F1"


def test_both_clients_have_the_same_methods() -> None:
    def signature(method: Any) -> str:
        return str(inspect.signature(method)).replace("AsyncIterator", "Iterator")

    awaited = {name: signature(method) for name, method in methods(AsyncClient)}
    assert awaited == {name: signature(method) for name, method in methods(Client)}


def test_the_client_loads_httpx_and_little_else() -> None:
    heavy = "torch", "fastapi", "pydantic", "sqlalchemy", "numpy", "orjson", "service.errors", "service.kit", "trainer"
    check = f"import sys, service.client; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_page_has_a_row_for_every_method(
    document: dict[str, Any], sent: list[tuple[str, httpx.Request, Any]]
) -> None:
    page = (DOCS / "client.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(\w+) (\S+)` \| (?:`(\S+)`|none) \|", page, re.MULTILINE)
    expected = []
    for name, request, _ in sent:
        path = next(path for _, path, found in operations(document) if found is operation_of(document, request))
        returns = inspect.signature(getattr(Client, name)).return_annotation
        kind = "" if returns is None else getattr(returns, "__name__", str(returns))
        kind = {"Iterator": "Iterator[dict]"}.get(kind, kind)
        expected.append((name, request.method, path.replace(":path", ""), kind))
    assert sorted(rows) == sorted(expected)
