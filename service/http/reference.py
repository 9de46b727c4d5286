"""docs/api.md from the OpenAPI document: `python -m service.http.reference > docs/api.md`."""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from service.app import create_app
from service.settings import Settings

_PREFIX = "#/components/schemas/"
_HEAD = """# API reference

JSON over HTTP. Everything under `/v1` asks for a key: `Authorization: Bearer KEY` ([access.md](access.md)). A failure
is a problem (RFC 9457): `slug` says which, `detail` what to do, `errors` where, `request_id` what to look for in the
log. Replies of 429 and 503 carry `Retry-After`. A running service shows the same at `/docs` and `/openapi.json`.
Written by `python -m service.http.reference > docs/api.md`.

"""
_EVERYWHERE = frozenset({"400", "401", "403", "408", "413", "429", "500", "503"})
"""Replies that every operation with a key has; they are said once."""


def api_page(document: Mapping[str, Any]) -> str:
    """The page, whole, from an OpenAPI document."""
    parts = [_HEAD, "## Operations\n"]
    common: dict[str, str] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append("\n".join(_operation(method, path, operation)))
            common |= {s: r["description"] for s, r in operation["responses"].items() if s in _EVERYWHERE}
    parts.append("## Replies that every route under /v1 may give\n\n| status | when |\n|---|---|")
    parts[-1] += "".join(f"\n| {status} | {common[status]} |" for status in sorted(common)) + "\n"
    parts.append("## Objects\n")
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts.append("\n".join(_object(name, schema)))
    return "\n".join(parts)


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {method.upper()} {path}\n"
    yield f"{operation.get('description') or operation.get('summary', '')}\n".strip() + "\n"
    if "security" not in operation:
        yield "No API key.\n"
    if parameters := operation.get("parameters"):
        yield "| parameter | in | type | meaning |\n|---|---|---|---|"
        for parameter in parameters:
            need = " (needed)" if parameter.get("required") else ""
            schema = parameter["schema"]
            meaning = parameter.get("description") or schema.get("description") or ""
            yield f"| `{parameter['name']}` | {parameter['in']}{need} | {_type(schema)} | {_cell(meaning)} |"
        yield ""
    for media, body in operation.get("requestBody", {}).get("content", {}).items():
        yield f"Body ({media}): {_type(body.get('schema', {}))}\n"
    yield "| status | reply |\n|---|---|"
    for status, reply in sorted(operation["responses"].items()):
        if status in _EVERYWHERE and "security" in operation:
            continue
        shown = [_type(content["schema"]) for content in reply.get("content", {}).values() if content.get("schema")]
        yield f"| {status} | {_cell(' '.join([reply['description'], *shown]))} |"
    yield ""


def _object(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {name}\n"
    if description := schema.get("description"):
        yield f"{description}\n"
    if values := schema.get("enum"):
        yield f"One of {', '.join(f'`{value}`' for value in values)}.\n"
    if properties := schema.get("properties"):
        needed = set(schema.get("required", ()))
        yield "| field | type | default | meaning |\n|---|---|---|---|"
        for field, of in properties.items():
            default = (
                "needed"
                if field in needed
                else f"`{json.dumps(of['default'])}`"
                if of.get("default") is not None
                else ""
            )
            yield f"| `{field}` | {_type(of)} | {default} | {_cell(of.get('description', ''))} |"
        yield ""


def _type(schema: Mapping[str, Any]) -> str:
    """A schema in a few words, for a cell."""
    if reference := schema.get("$ref"):
        name = reference.removeprefix(_PREFIX)
        return f"[{name}](#{name.lower()})"
    for kind in ("anyOf", "oneOf", "allOf"):
        if kind in schema:
            return " or ".join(dict.fromkeys(_type(part) for part in schema[kind]))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    found = str(schema.get("type", "any"))
    if found == "array":
        found = f"list of {_type(schema.get('items', {}))}"
    if found == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        found = f"object of {_type(schema['additionalProperties'])}"
    return found + _limits(schema)


def _limits(schema: Mapping[str, Any]) -> str:
    said = [str(schema["format"])] if "format" in schema else []
    for low, high, unit in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " entries"),
    ):
        if low in schema and high in schema:
            said.append(f"{schema[low]:g} to {schema[high]:g}{unit}")
        elif low in schema:
            said.append(f"at least {schema[low]:g}{unit}")
        elif high in schema:
            said.append(f"at most {schema[high]:g}{unit}")
    return f" ({', '.join(said)})" if said else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def current_document() -> dict[str, Any]:
    """The OpenAPI document of this version."""
    with tempfile.TemporaryDirectory() as folder:  # nothing connects before the application starts
        return create_app(Settings(home=Path(folder))).openapi()


if __name__ == "__main__":
    sys.stdout.write(api_page(current_document()))
