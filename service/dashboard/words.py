"""How moments, spans and figures are written on a page. Pure."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from markupsafe import Markup

DASH = "–"
"""Stands where there is nothing to show."""


def moment(value: datetime | None) -> Markup:
    """A <time> element in UTC, to the second."""
    if value is None:
        return Markup.escape(DASH)
    return Markup('<time datetime="{}">{}</time>').format(f"{value:%Y-%m-%dT%H:%M:%SZ}", f"{value:%Y-%m-%d %H:%M:%S}")


def span(value: timedelta | float | None) -> str:
    """A duration (or seconds) in its two largest units: `3 d 4 h`, `12 min 5 s`, `0.42 s`; negative ones as 0 s."""
    if value is None:
        return DASH
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if seconds <= 0:
        return "0 s"
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2g} s"
    whole = round(seconds)
    for size, unit, below, lesser in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit}" + (f" {rest} {lesser}" if rest else "")
    return f"{whole} s"


def figure(value: float | None, digits: int = 4) -> str:
    """A metric with so many decimals."""
    return DASH if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 4) -> str:
    return DASH if value is None else f"{value:+.{digits}f}".replace("-", "−")


def count(value: int | None) -> str:
    """A whole number with thin gaps between thousands."""
    return DASH if value is None else f"{value:,}".replace(",", "\u202f")


def percent(value: float | None) -> str:
    """A share of 1."""
    return DASH if value is None else f"{100 * value:.1f} %"


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return DASH
    return f"{1000 * seconds:.1f} ms" if seconds < 0.1 else f"{1000 * seconds:.0f} ms"


def metrics(found: Mapping[str, object]) -> str:
    """The figures among an adapter's metrics, in one line."""
    figures = [(name, value) for name, value in found.items() if isinstance(value, int | float)]
    return ", ".join(f"{name} {value:.4g}" for name, value in figures[:6])


FILTERS = {
    "moment": moment,
    "span": span,
    "figure": figure,
    "signed": signed,
    "count": count,
    "percent": percent,
    "milliseconds": milliseconds,
    "metrics": metrics,
}
