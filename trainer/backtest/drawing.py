"""How the plots of a backtest look: SVG text with ink and grid as CSS variables, the same bytes for the same drawing.

So one drawing is readable on light and on dark pages, and its text stays text.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trainer.backtest.entries import PESO, PRETRAIN, SINGLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Stand-ins that become CSS variables in the SVG.
INK, GRID = "#010203", "#040506"
PLAIN, SINGLE_COLOUR = "#868e96", "#1c7ed6"
_LOOKS = {  # by what a name begins with: colour, marker; readable on light and on dark
    PESO: ("#d9480f", "o"),
    SINGLE: (SINGLE_COLOUR, "s"),
    PRETRAIN: (PLAIN, "^"),
    "popularity": ("#2f9e44", "D"),
    "sasrec": ("#9c36b5", "v"),
    "lightgcn": ("#0c8599", "P"),
    "l2": ("#2f9e44", "D"),
    "orthogonal": ("#9c36b5", "v"),
    "output-kl": ("#0c8599", "P"),
    "rank-kl": ("#c2255c", "X"),
    "": ("#c2255c", "X"),
}
_STYLE: dict[Any, Any] = {  # the stubs spell every key out
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],  # matplotlib brings the first; the second is as wide
    "font.size": 10.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 9.0,
}
_FILE_STYLE = (
    "<style>svg{--ink:#1f2328;--grid:#d0d7de;font-family:sans-serif}"
    "@media(prefers-color-scheme:dark){svg{--ink:#e6edf3;--grid:#3d444d}}</style>"
)
"""For an SVG that stands alone; a page that holds one inline sets the two variables itself."""


def standalone(svg: str) -> str:
    """An SVG of `plots` as a file of its own, which follows the reader's light or dark theme."""
    return svg.replace(">", f">{_FILE_STYLE}", 1) + "\n"


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """Within it figures have this module's style, and ids that depend on nothing but the drawing."""
    import matplotlib

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        yield


def svg_text(name: str, figure: "Figure") -> str:
    """The figure from `<svg` on, without a date; every id begins with `name` (plain letters and hyphens)."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    # Several drawings share a page, so each one's ids get its name.
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", text)
    text = re.sub(
        r'^<svg ([^>]*?)width="([\d.]+)pt" height="[\d.]+pt"',
        rf'<svg \1role="img" aria-label="{name}" width="\2pt"',
        text,
    )
    return text.replace(INK, "var(--ink)").replace(GRID, "var(--grid)")


def figure_with_axes(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple["Figure", Any]:
    """A figure in inches and its axes, an array [rows, columns]; needs no display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def look(name: str) -> tuple[str, str]:
    """A method's colour and marker, the same in every plot."""
    return next(look for start, look in _LOOKS.items() if name.startswith(start))
