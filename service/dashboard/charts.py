"""A chart as data: drawn by static/charts.js where there are scripts, a table of the same numbers everywhere. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Line:
    """One series. colour: 1 to 6 of the style's --series colours; right: on an axis of its own, at the right."""

    label: str
    values: Sequence[float | None]
    colour: int = 1
    dashed: bool = False
    right: bool = False
    points: bool = True


@dataclass(frozen=True, slots=True)
class Band:
    """A shaded range in the colour of a line, such as a confidence interval."""

    label: str
    low: Sequence[float | None]
    high: Sequence[float | None]
    colour: int = 1


@dataclass(frozen=True, slots=True)
class Chart:
    """x: ascending; values None where a line has none. note: what a reader has to know, shown below."""

    title: str
    x_label: str
    x: Sequence[float]
    lines: Sequence[Line]
    band: Band | None = None
    note: str = ""
    y_label: str = ""
    right_label: str = ""
    labels: Sequence[str] = field(default=())
    """Of the rows of the table, where x alone does not say it."""

    @property
    def columns(self) -> list[tuple[str, Sequence[float | None]]]:
        """Headings and values of the table beside x."""
        found = [(line.label, line.values) for line in self.lines]
        if self.band is not None:
            found += [(f"{self.band.label}, low", self.band.low), (f"{self.band.label}, high", self.band.high)]
        return found

    def drawn(self) -> dict[str, Any]:
        """What charts.js reads from the figure's data-chart."""
        lines = [
            {
                "label": line.label,
                "values": list(line.values),
                "colour": line.colour,
                "dashed": line.dashed,
                "right": line.right,
                "points": line.points,
            }
            for line in self.lines
        ]
        band = None
        if self.band is not None:
            band = {
                "label": self.band.label,
                "low": list(self.band.low),
                "high": list(self.band.high),
                "colour": self.band.colour,
            }
        return {
            "x": list(self.x),
            "xLabel": self.x_label,
            "yLabel": self.y_label,
            "rightLabel": self.right_label,
            "lines": lines,
            "band": band,
        }
