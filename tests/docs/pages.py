"""The pages that a user reads, and the commands in them.

A block of commands is fenced as `sh` (or `console`: its lines that begin with `$ ` are the commands), or indented by
four spaces and begins with one. What the test should know stands in comments above it, which no reader sees:

    <!-- not run: reason -->     the block is not run, because ..
    <!-- before: commands -->    commands to run first; a NAME that they set replaces the bare word NAME in the block
    <!-- starts empty -->        anywhere on the page: it begins with an empty home, not with a base that serves
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RECORDS = ("decisions", "results")
"""Folders that record what was decided and measured: their commands took hours and are checked by name alone."""

_FENCE = re.compile(r"^( *)(```+)([^`]*?)\s*$")
_COMMAND = re.compile(
    r"^ {4}(adaptide|curl|pip|docker|kubectl|redis-cli|export|createuser|createdb|openssl|psql|pg_dump|locust|python)\b"
)
_COMMENT = re.compile(r"<!--\s*(not run|before):(.*?)-->", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A block of one page, fenced or of indented commands."""

    page: str
    """Relative to the repository."""
    line: int
    """Of its first line, from 1."""
    language: str
    text: str
    not_run: str | None
    """Why the block is not run; None: it is."""
    before: str
    """Commands to run first."""

    @property
    def commands(self) -> str:
        """What a shell is given."""
        if self.language != "console":
            return self.text
        return "\n".join(line[2:] for line in self.text.splitlines() if line.startswith("$ "))

    @property
    def is_shell(self) -> bool:
        return self.language in ("sh", "console")

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """README.md and every page of docs/."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def is_record(path: Path) -> bool:
    return path.is_relative_to(DOCS) and path.relative_to(DOCS).parts[0] in RECORDS


def blocks(path: Path) -> list[Block]:
    """The blocks of a page, in order."""
    return blocks_in(path.relative_to(ROOT).as_posix(), path.read_text())


def blocks_in(name: str, text: str) -> list[Block]:
    """The blocks of a text, in order; `name` is the page's."""
    found: list[Block] = []
    lines = text.splitlines()
    above, number = 0, 0
    while number < len(lines):
        if opened := _FENCE.match(lines[number]):
            indent, fence, language, first = len(opened[1]), opened[2], opened[3], number + 1
            end = next(n for n in range(first, len(lines)) if lines[n].strip() == fence)
            after = end + 1
        elif _COMMAND.match(lines[number]):
            indent, language, first = 4, "sh", number
            end = after = next((n for n in range(number, len(lines)) if not lines[n].startswith("    ")), len(lines))
        else:
            number += 1
            continue
        inside = "\n".join(line[indent:] for line in lines[first:end])
        said = {kind: body.strip() for kind, body in _COMMENT.findall(_comments_above(lines[above:number]))}
        found.append(Block(name, first + 1, language, inside, said.get("not run"), said.get("before", "")))
        above = number = after
    return found


def starts_empty(path: Path) -> bool:
    return "<!-- starts empty -->" in path.read_text()


def shell_blocks(path: Path) -> list[Block]:
    return [block for block in blocks(path) if block.is_shell]


def _comments_above(lines: list[str]) -> str:
    """The comments that stand directly above a fence, with nothing but blank lines between."""
    text = "\n".join(lines).rstrip()
    kept = ""
    while text.endswith("-->"):
        start = text.rindex("<!--")
        kept = text[start:] + kept
        text = text[:start].rstrip()
    return kept
