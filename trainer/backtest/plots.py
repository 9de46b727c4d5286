"""The plots of a backtest, from its results, as SVG text."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from service.errors import ConfigurationError
from trainer.backtest.drawing import (
    GRID,
    INK,
    PLAIN,
    SINGLE_COLOUR,
    drawing,
    figure_with_axes,
    look,
    svg_text,
)
from trainer.backtest.entries import ORDER, PESO, PRETRAIN, SINGLE
from trainer.backtest.tables import LABELS, REGULARISERS, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FAMILIES = (
    *((PESO,), (SINGLE,), (PRETRAIN,), ("popularity",), ("sasrec",), ("lightgcn",)),
    ("sum-lora", "sd-lora", "inf-lora"),
)
_METRIC = "ndcg@10"
NEXT_ITEMS = "-next-items"
"""Ends the name of a plot that shows what was asked for before a block was learnt."""
_LAST_ITEMS_ONLY = ("regularisers", "forgetting")


def plots(results: Mapping[str, Any]) -> dict[str, str]:
    """Name -> SVG, for those for which there are results. Raises ConfigurationError without matplotlib."""
    try:
        import matplotlib  # noqa: F401  # an extra: results and tables do without
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "plots need another package: pip install 'adaptide[backtest]', then run the backtest again; "
            "what is done is kept"
        ) from error
    draw: dict[str, Callable[[Mapping[str, Any]], Figure | None]] = {
        "learning-curve": _learning_curve,
        "gains": _gains,
        "regularisers": _regularisers,
        "lambda-sweep": lambda results: _sweep(results, "lambda"),
        "ratio-sweep": lambda results: _sweep(results, "ratio"),
        "learning-rate-sweep": lambda results: _sweep(results, "learning_rate"),
        "rank-sweep": lambda results: _sweep(results, "rank"),
        "forgetting": _forgetting,
    }
    asked = _of_next_items(results)
    made = [(name, make, results) for name, make in draw.items()]
    made += [(name + NEXT_ITEMS, make, asked) for name, make in draw.items() if name not in _LAST_ITEMS_ONLY]
    drawn = {}
    for name, make, shown in made:
        with drawing(name):
            figure = make(shown)
            if figure is not None:
                drawn[name] = svg_text(name, figure)
    return drawn


def _of_next_items(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results with the metrics of next items in the place of last items'."""
    methods = {name: {**s, **s["prequential"]} for name, s in results["methods"].items() if s["prequential"]}
    variants = [{**s, **s["prequential"]} for s in results["variants"] if s["prequential"]]
    return {**results, "methods": methods, "variants": variants}


def _learning_curve(results: Mapping[str, Any]) -> "Figure | None":
    methods = {name: s for name, s in results["methods"].items() if s[_METRIC]["mean"] is not None}
    if not methods:
        return None
    shown = _best_of_families(methods)
    figure, axes = figure_with_axes(6.6, 3.6)
    ax = axes[0, 0]
    rest = [name for name in methods if name not in shown]
    for i, name in enumerate(rest):
        label = "other methods" if i == 0 else None
        ax.plot(*_known(results["blocks"], methods[name]), color=GRID, linewidth=0.9, label=label, zorder=1)
    for name in shown:
        (x, y), (colour, marker) = _known(results["blocks"], methods[name]), look(name)
        ax.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.8, label=name, zorder=3)
    ax.set_xticks(results["blocks"], [f"block {block}" for block in results["blocks"]])
    ax.set_ylabel("NDCG@10")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _best_of_families(methods: Mapping[str, Any]) -> list[str]:
    """The best method of each family, so that a plot holds as many lines as an eye can follow."""
    best = []
    for family in _FAMILIES:
        own = [name for name in methods if name.startswith(family)]
        own = [name for name in own if methods[name]["complete"]] or own
        if own:
            best.append(max(own, key=lambda name: methods[name][_METRIC]["mean"]))
    return best


def _known(blocks: Sequence[int], summary: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    pairs = [(b, v) for b, v in zip(blocks, summary[_METRIC]["per_block"], strict=True) if v is not None]
    return [b for b, _ in pairs], [v for _, v in pairs]


def _gains(results: Mapping[str, Any]) -> "Figure | None":
    rows = [
        (name, found)
        for name, s in results["methods"].items()
        if name != SINGLE and (found := s[_METRIC]["vs_single_evolving"]) is not None
    ]
    if not rows:
        return None
    figure, axes = figure_with_axes(6.6, 0.9 + 0.24 * len(rows))
    ax = axes[0, 0]
    ax.axvline(0.0, color=INK, linewidth=0.9)
    for y, (name, found) in enumerate(rows):
        low, high = found["ci95"]
        colour = look(PESO if name == PESO else SINGLE)[0]
        ax.plot([low, high], [y, y], color=colour, linewidth=2.0)
        ax.plot([found["difference"]], [y], color=colour, marker="o", markersize=5)
    ax.set_yticks(range(len(rows)), [name for name, _ in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel("NDCG@10 minus single evolving LoRA, 95 % interval")
    return figure


def _regularisers(results: Mapping[str, Any]) -> "Figure | None":
    methods = results["methods"]
    names = [n for n in (SINGLE, *REGULARISERS) if n in methods and methods[n][_METRIC]["mean"] is not None]
    if len(names) < 2 or SINGLE not in names:
        return None
    figure, axes = figure_with_axes(5.6, 3.2)
    ax = axes[0, 0]
    means = [methods[name][_METRIC]["mean"] for name in names]
    colours = [look(PESO)[0] if name == PESO else PLAIN for name in names]
    ax.bar(range(len(names)), means, color=colours, width=0.62)
    for x, name in enumerate(names):
        _error_bar(ax, x, methods[name], INK)
    ax.axhline(means[0], color=SINGLE_COLOUR, linewidth=1.0, linestyle="--")
    ax.set_xticks(range(len(names)), names, rotation=20)
    ax.set_ylabel("NDCG@10")
    ax.grid(axis="x", visible=False)
    return figure


def _error_bar(ax: "Axes", x: float, summary: Mapping[str, Any], colour: str) -> None:
    """The interval of the difference from single evolving LoRA, drawn around the method's mean."""
    found, mean = summary[_METRIC]["vs_single_evolving"], summary[_METRIC]["mean"]
    if found is not None and (summary["method"] != SINGLE or summary["variant"]):
        low, high = (mean + end - found["difference"] for end in found["ci95"])
        ax.plot([x, x], [low, high], color=colour, linewidth=1.2, zorder=4)


def _sweep(results: Mapping[str, Any], key: str) -> "Figure | None":
    swept = [s for s in results["variants"] if key in s["variant"] and s[_METRIC]["mean"] is not None]
    names = sorted({s["method"] for s in swept}, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    if not swept:
        return None
    figure, axes = figure_with_axes(6.6, 3.6)
    ax = axes[0, 0]
    _single_band(ax, results["methods"].get(SINGLE))
    for name in names:
        own = sorted((s for s in swept if s["method"] == name), key=lambda s: float(s["variant"][key]))
        x = [float(s["variant"][key]) for s in own]
        colour, marker = look(name)
        ax.plot(x, [s[_METRIC]["mean"] for s in own], color=colour, marker=marker, markersize=5, label=name)
        for value, summary in zip(x, own, strict=True):
            _error_bar(ax, value, summary, colour)
    ax.set_xscale("log")
    values = sorted({float(s["variant"][key]) for s in swept})
    leader = PESO if PESO in names else names[0]
    ratios = {float(s["variant"][key]): s["gradient_ratio"] for s in swept if s["method"] == leader}
    ax.set_xticks(values, [_tick(value, ratios.get(value)) for value in values])
    ax.set_xticks([], minor=True)
    below = f"; below it the gradient ratio of {leader}" if any(ratios.values()) else ""
    ax.set_xlabel(LABELS.get(key, key) + below)
    ax.set_ylabel("NDCG@10")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _tick(value: float, ratio: float | None) -> str:
    return number(value) if ratio is None else f"{number(value)}\n{ratio:.2g}"


def _single_band(ax: "Axes", single: Mapping[str, Any] | None) -> None:
    """Single evolving LoRA: its mean and what lies between its lowest and highest seed."""
    if single is None or single[_METRIC]["mean"] is None:
        return
    own = list(single[_METRIC]["per_seed"].values())
    if len(own) > 1:
        ax.axhspan(min(own), max(own), color=SINGLE_COLOUR, alpha=0.25, linewidth=0)
    ax.axhline(single[_METRIC]["mean"], color=SINGLE_COLOUR, linestyle="--", linewidth=1.2, label=f"{SINGLE} (λ 0)")


def _forgetting(results: Mapping[str, Any]) -> "Figure | None":
    methods = {n: s for n, s in results["methods"].items() if s["stages"] and s[_METRIC]["mean"] is not None}
    names = [name for name in _best_of_families(methods) if name not in ("popularity", PRETRAIN)]
    if not names:
        return None
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = figure_with_axes(2.3 * columns + 0.4, 2.4 * rows, columns, rows)
    matrices = {name: np.array(methods[name]["stages"], dtype=np.float64) for name in names}
    highest = max(float(np.nanmax(matrix)) for matrix in matrices.values())
    for i, ax in enumerate(axes.flat):
        if i >= len(names):
            ax.set_axis_off()
            continue
        _heat(ax, matrices[names[i]], highest or 1.0)
        ax.set_title(names[i], fontsize=10)
        ax.set_xlabel("scored on block")
        if i % columns == 0:
            ax.set_ylabel("after block")
    return figure


def _heat(ax: "Axes", matrix: np.ndarray, highest: float) -> None:
    size = len(matrix)
    ax.grid(visible=False)
    ax.pcolormesh(matrix, cmap="Blues", vmin=0.0, vmax=highest, edgecolors="none")
    for (row, column), value in np.ndenumerate(matrix):
        if not np.isnan(value):
            colour = "#ffffff" if value > 0.6 * highest else "#1f2328"
            text = f"{value:.3f}".removeprefix("0")
            ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color=colour)
    ax.set_xlim(0, size)
    ax.set_ylim(size, 0)
    ticks = np.arange(size) + 0.5
    ax.set_xticks(ticks, [str(i + 1) for i in range(size)])
    ax.set_yticks(ticks, [str(i + 1) for i in range(size)])
    ax.set_aspect("equal")
