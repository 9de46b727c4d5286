"""The tables of a backtest as Markdown, for docs/results and the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer.backtest.tables import Table, tables


def markdown(results: Mapping[str, Any]) -> str:
    """Every table under a heading of its own."""
    return "\n\n".join(_written(table) for table in tables(results))


def _written(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def rows() -> Iterator[str]:
        yield f"### {table.title}"
        yield ""
        yield line([_plain(name) for name in table.head])
        yield line(["---", *["---:"] * (len(table.head) - 1)])
        for row in table.rows:
            yield line([f"**{_plain(cell.text)}**" if cell.best else _plain(cell.text) for cell in row])
        if table.note:
            yield ""
            yield _plain(table.note)

    return "\n".join(rows())


_SPECIAL = {"\\": "\\\\", "|": "\\|", "*": "\\*", "`": "\\`", "[": "\\[", "<": "&lt;", ">": "&gt;", "&": "&amp;"}


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(_SPECIAL.get(c, c) for c in " ".join(text.split()))
