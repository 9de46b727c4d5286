"""docs/commands.md from the commands themselves: `python -m trainer.reference > docs/commands.md`."""

import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import typer.main

from trainer.cli import app

_HEAD = """# Commands

`adaptide COMMAND --help` says the same. Exit status: 0 good, 1 failed, 2 wrong use. Every command reads its settings
from `ADAPTIDE_` variables ([settings.md](settings.md)); results as JSON: `--json`, where it is listed. Written by
`python -m trainer.reference > docs/commands.md`.
"""
_KINDS = {int: "integer", float: "number", Path: "path"}


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its whole name, in order of the alphabet."""
    yield from sorted(_below("adaptide", typer.main.get_command(app)), key=lambda found: found[0])


def _below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
        return
    for part, below in command.commands.items():
        if not below.hidden:
            yield from _below(f"{name} {part}", below)


def commands_page() -> str:
    """The page, whole."""
    return "\n".join([_HEAD, *(line for name, command in commands() for line in _section(name, command))])


def _section(name: str, command: Any) -> Iterator[str]:
    arguments = [found for found in command.params if found.param_type_name == "argument"]
    options = [found for found in command.params if found.param_type_name == "option" and not found.hidden]
    words = [argument.metavar or argument.name.upper() for argument in arguments]
    usage = [word if argument.required else f"[{word}]" for word, argument in zip(words, arguments, strict=True)]
    yield f"## {name}\n"
    yield f"`{' '.join([name, *usage])}`\n"
    yield f"{' '.join((command.help or '').split())}\n"
    named = [*zip(words, arguments, strict=True), *((", ".join(option.opts), option) for option in options)]
    if named:
        yield "| argument or option | takes | default | meaning |\n|---|---|---|---|"
        for shown, parameter in named:
            meaning = " ".join((parameter.help or "").split()).replace("|", "\\|")
            yield f"| `{shown}` | {_takes(parameter)} | {_default(parameter)} | {meaning} |"
        yield ""


def _takes(parameter: Any) -> str:
    kind = parameter.type_descriptor.annotation
    kind = get_args(kind)[0] if get_args(kind) else kind
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{choice.value}`" for choice in kind)
    if kind is bool:
        return ""
    low, high = getattr(parameter, "min", None), getattr(parameter, "max", None)
    limits = f"{low} to {high}" if None not in (low, high) else f"at least {low}" if low is not None else ""
    word = _KINDS.get(kind, "text")
    return f"{word} ({limits})" if limits else word


def _default(parameter: Any) -> str:
    if parameter.required:
        return "needed"
    default = parameter.default.value if isinstance(parameter.default, Enum) else parameter.default
    return "" if default in (None, False, "") else f"`{default}`"


if __name__ == "__main__":
    sys.stdout.write(commands_page())
