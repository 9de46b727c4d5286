"""The generated half of service/client, from the OpenAPI document: `python -m service.http.client_source` writes it.

models.py: a dataclass for each schema of the document. synchronous.py: asynchronous.py without its awaits. A test fails
while a file is not what is written here.
"""

import re
from pathlib import Path
from typing import Any

from service.http.reference import current_document

FOLDER = Path(__file__).parents[1] / "client"
_MADE = "Made by `python -m service.http.client_source`; do not edit."
# A problem becomes an exception; batches are lists.
_LEFT_OUT = frozenset({"Problem", "Place", "EventBatch", "ItemBatch"})
_TYPES = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "null": "None",
    "object": "dict[str, Any]",
}
MADE_HERE = {
    ("Event", "event_id"): "field(default_factory=lambda: str(uuid4()))",
    ("Event", "occurred_at"): "field(default_factory=lambda: datetime.now(UTC))",
}
"""An event is made where it happens, once: a repeated attempt sends the same id."""
_UNASYNC = (
    ("The API, for asyncio; a method a route, so long. `python -m service.http.client_source` makes the other.",
     f"The API; a method a route, so long. {_MADE}"),
    ("import asyncio\nimport json\nimport uuid\n", "import json\nimport time\nimport uuid\n"),
    ("asyncio.sleep", "time.sleep"),
    ("AsyncBaseTransport", "BaseTransport"),
    ("AsyncIterator", "Iterator"),
    ("AsyncClient", "Client"),
    ("async def", "def"),
    ("async with", "with"),
    ("async for", "for"),
    ("__aenter__", "__enter__"),
    ("__aexit__", "__exit__"),
    ("aclose", "close"),
    ("aread", "read"),
    ("aiter_lines", "iter_lines"),
)  # fmt: skip


def models(document: dict[str, Any]) -> str:
    """The text of models.py."""
    schemas = {name: schema for name, schema in document["components"]["schemas"].items() if name not in _LEFT_OUT}
    lines = [
        *(
            f'"""What is sent and answered, every schema, so long. {_MADE}"""',
            "",
            "from __future__ import annotations",
            "",
        ),
        *("from dataclasses import dataclass, field", "from datetime import UTC, datetime", "from typing import Any"),
        *("from uuid import uuid4", "", ""),
    ]
    for name in sorted(schemas):
        if "enum" not in schemas[name]:
            lines += _model(name, schemas[name], schemas)
    return "\n".join(lines).rstrip() + "\n"


def synchronous() -> str:
    """The text of synchronous.py."""
    text = (FOLDER / "asynchronous.py").read_text()
    for found, instead in _UNASYNC:
        text = text.replace(found, instead)
    text = re.sub(r"\(await (self\._send\([^\n]*?\))\)\.text", r"\1.text", text)
    return text.replace("await ", "")


def _model(name: str, schema: dict[str, Any], schemas: dict[str, Any]) -> list[str]:
    description = " ".join(schema.get("description", "").split())
    lines = ["@dataclass(frozen=True, slots=True, kw_only=True)", f"class {name}:"]
    lines += [f'    """{part}' if at == 0 else f"    {part}" for at, part in enumerate(_wrapped(description))]
    if description:
        lines[-1] += '"""' if len(lines) == 3 else '\n    """'
        lines.append("")
    required = set(schema.get("required", ()))
    for field, kind in schema.get("properties", {}).items():
        text, values = _type(kind, schemas)
        default = MADE_HERE.get((name, field)) or _default(kind, field in required, text)
        if default == "None" and not text.endswith("| None"):
            text += " | None"
        lines.append(f"    {field}: {text}" + (f" = {default}" if default else ""))
        if values:
            said = _wrapped(f"{', '.join(values)}, or what a newer server adds.")
            lines += [f'    """{said[0]}', *(f"    {part}" for part in said[1:])]
            lines[-1] += '"""'
    return [*lines, "", ""]


def _wrapped(text: str, width: int = 108) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if len(line) + len(word) + 1 > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return [*lines, line] if line else []


def _type(kind: dict[str, Any], schemas: dict[str, Any]) -> tuple[str, list[str]]:
    """A type's text, and the values of an enumeration."""
    if "$ref" in kind:
        name = kind["$ref"].rpartition("/")[2]
        return ("str", schemas[name]["enum"]) if "enum" in schemas[name] else (name, [])
    for several in ("anyOf", "oneOf", "allOf"):
        if several in kind:
            found = [_type(one, schemas) for one in kind[several]]
            texts = sorted(dict.fromkeys(text for text, _ in found), key=lambda text: text == "None")
            return " | ".join(texts), [value for _, values in found for value in values]
    if kind.get("format") == "date-time":
        return "datetime", []
    if kind.get("type") == "array":
        # A pair has prefixItems: a type for each place, of which JSON knows no more than their union.
        text, values = _type(kind.get("items") or {"anyOf": kind.get("prefixItems", [{}])}, schemas)
        return f"list[{text}]", values
    if kind.get("type") == "object" and isinstance(kind.get("additionalProperties"), dict):
        text, values = _type(kind["additionalProperties"], schemas)
        return f"dict[str, {text}]", values
    return _TYPES.get(kind.get("type", ""), "Any"), kind.get("enum", [])


def _default(kind: dict[str, Any], required: bool, text: str) -> str | None:
    if required:
        return None
    given = kind.get("default")
    if given == [] or (given is None and text.startswith("list") and not text.endswith("| None")):
        return "field(default_factory=list)"
    if given == {}:
        return f"field(default_factory={'dict' if text.startswith('dict') else f'lambda: {text}()'})"
    return repr(given)


def main() -> None:
    (FOLDER / "models.py").write_text(models(current_document()))
    (FOLDER / "synchronous.py").write_text(synchronous())


if __name__ == "__main__":
    main()
