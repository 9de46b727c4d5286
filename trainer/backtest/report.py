"""report.html: one page without anything from outside, and its plots as files. Everything from data is escaped."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import orjson

from service.errors import ConfigurationError
from trainer.backtest.drawing import standalone
from trainer.backtest.entries import PESO, SINGLE
from trainer.backtest.markdown import markdown
from trainer.backtest.plots import NEXT_ITEMS, plots
from trainer.backtest.summary import summarise
from trainer.backtest.tables import Table, gain, interval, tables

__all__ = ["markdown", "summarise", "write_report"]

_CAPTIONS = {
    "learning-curve": "NDCG@10 on each block after learning it; the best method of each family stands out.",
    "gains": "Gain over single evolving LoRA. An interval that holds 0 can be chance.",
    "regularisers": "Penalties against the previous adapter (paper, figure 2). Lines: interval of the difference from "
    "single evolving LoRA, the dashed one.",
    "lambda-sweep": "The weight of the proximal (paper, figure 3). Band: lowest to highest seed of single evolving "
    "LoRA; vertical lines: interval of the difference from it.",
    "ratio-sweep": "The same with λ set as a share of the first step's gradient, which carries over between backbones.",
    "learning-rate-sweep": "The rate on the increments (paper, figure 4). Vertical lines: interval of the difference "
    "from single evolving LoRA at the same rate, and of that from itself at the rate of the settings.",
    "rank-sweep": "The rank of the adapter, its scale kept. Band: single evolving LoRA at the rank of the settings. "
    "Lines: interval of the difference from it, and for other methods from single evolving LoRA at the same rank.",
    "forgetting": "NDCG@10 after each block (row) on every block (column), on the same users of each.",
    f"learning-curve{NEXT_ITEMS}": "NDCG@10 on the next items of each block, before it is learnt.",
}
_SWEEPS = ("lambda-sweep", "ratio-sweep", "learning-rate-sweep", "rank-sweep")
_PLOTS_OF = {
    "main": ("gains", "regularisers"),
    "blocks": ("learning-curve",),
    "prequential": tuple(name + NEXT_ITEMS for name in ("gains", "learning-curve", *_SWEEPS)),
    "sweeps": _SWEEPS,
    "forgetting": ("forgetting",),
}


def write_report(raw: Mapping[str, Any], results: Mapping[str, Any], folder: Path) -> None:
    """Write folder/report.html and folder/plots/*.svg. raw: for the training details, results: from summarise.

    Without matplotlib the page says how to get the plots.
    """
    try:
        drawn, missing = plots(results), ""
    except ConfigurationError as error:
        drawn, missing = {}, error.detail
    page = "".join(_page(raw, results, drawn, missing))
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "report.html", page)
    for name, svg in drawn.items():
        (folder / "plots").mkdir(exist_ok=True)
        _write(folder / "plots" / f"{name}.svg", standalone(svg))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _page(raw: Mapping[str, Any], results: Mapping[str, Any], drawn: Mapping[str, str], missing: str) -> Iterator[str]:
    made = tables(results)
    data = results["data"] or {}
    name = escape(str(data.get("name", "backtest")))
    style = (files("trainer.backtest") / "report.css").read_text(encoding="utf-8")
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield f"<title>Backtest on {name}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
    yield f"<header>\n<h1>Backtest on {name}</h1>\n<p class='lead'>{escape(_lead(results))}</p>\n"
    if not results["complete"]:
        yield f"<p class='warning'>{escape(unfinished(results))}</p>\n"
    if missing:
        yield f"<p class='warning'>{escape(missing)}</p>\n"
    yield "<nav aria-label='Sections'><ul>"
    for table in made:
        yield f"<li><a href='#{table.key}'>{escape(table.title)}</a></li>"
    yield "<li><a href='#training'>Training</a></li><li><a href='#setting'>Data and settings</a></li></ul></nav>\n"
    yield "</header>\n<main>\n"
    for table in made:
        yield from _section(table, drawn)
    yield from _training(raw)
    yield from _setting(results)
    yield "</main>\n</body>\n</html>\n"


def _lead(results: Mapping[str, Any]) -> str:
    """What came out, in a sentence or three."""
    counts = [(len(results["methods"]), "method"), (len(results["seeds"]), "seed"), (len(results["blocks"]), "block")]
    facts = ", ".join(f"{n} {what}{'' if n == 1 else 's'}" for n, what in counts) + " after D₁."
    peso = results["methods"].get(PESO) or {}
    asked = peso.get("prequential") or {}
    last, coming = (own["ndcg@10"]["vs_single_evolving"] if own else None for own in (peso, asked))
    if last is not None:
        facts += (
            f" PESO as set here is {_verdict(last)} {SINGLE}: NDCG@10 {gain(last)}, 95 % interval {interval(last)}."
        )
    if coming is not None:
        facts += f" On next items it is {_verdict(coming)} it: {gain(coming)}, {interval(coming)}."
    return facts


def _verdict(found: Mapping[str, Any]) -> str:
    low, high = found["ci95"]
    if low > 0:
        return "better than"
    return "worse than" if high < 0 else "not distinguishable from"


def unfinished(results: Mapping[str, Any]) -> str:
    """What is missing of a backtest that has not come to its end."""
    absent = results["not_begun"]
    return (
        f"{results['tasks_done']} of {results['tasks_planned']} tasks are done: rows marked * rest on fewer seeds or "
        "blocks than planned."
        + (f" Nothing is there yet of {', '.join(absent)}." if absent else "")
        + " Run the backtest again to go on."
    )


def _section(table: Table, drawn: Mapping[str, str]) -> Iterator[str]:
    yield f"<section id='{table.key}'>\n<h2>{escape(table.title)}</h2>\n"
    yield from _html_table(table.head, [[(cell.text, cell.best) for cell in row] for row in table.rows])
    if table.note:
        yield f"<p class='note'>{escape(table.note)}</p>\n"
    for name in _PLOTS_OF.get(table.key, ()):
        if name in drawn:
            yield f"<figure><div class='scroll'>{drawn[name]}</div>\n"
            yield f"<figcaption>{escape(_caption(name))}</figcaption></figure>\n"
    yield "</section>\n"


def _caption(name: str) -> str:
    own = _CAPTIONS.get(name)
    return own or f"Of next items, asked for before their block is learnt. {_CAPTIONS[name.removesuffix(NEXT_ITEMS)]}"


def _html_table(head: Sequence[str], rows: Sequence[Sequence[tuple[str, bool]]]) -> Iterator[str]:
    yield "<div class='scroll' tabindex='0'><table>\n<thead><tr>"
    yield "".join(f"<th scope='col'>{escape(name)}</th>" for name in head)
    yield "</tr></thead>\n<tbody>\n"
    for row in rows:
        yield f"<tr><th scope='row'>{escape(row[0][0])}</th>"
        for text, best in row[1:]:
            yield f"<td><strong>{escape(text)}</strong></td>" if best else f"<td>{escape(text)}</td>"
        yield "</tr>\n"
    yield "</tbody></table></div>\n"


def _training(raw: Mapping[str, Any]) -> Iterator[str]:
    """How each task's blocks were learnt: closed at first, since it is long."""
    rows = [[(text, False) for text in _training_row(task, block)] for task in raw["tasks"] for block in task["blocks"]]
    yield "<section id='training'>\n<h2>Training</h2>\n"
    if rows:
        head = ("Method", "Variant", "Seed", "Block", "Users", "Seconds", "Best epoch", "Losses", "Gradient ratio")
        yield f"<details><summary>{len(rows)} blocks learnt</summary>\n"
        yield from _html_table(head, rows)
        yield "</details>\n"
    else:
        yield "<p>Nothing has been learnt yet.</p>\n"
    yield "</section>\n"


def _training_row(task: Mapping[str, Any], block: Mapping[str, Any]) -> list[str]:
    variant = ", ".join(f"{name} {value}" for name, value in (task.get("variant") or {}).items())
    losses = [loss for loss in block.get("losses") or [] if loss is not None]  # not a number in an earlier version
    ends = f"{losses[0]:.3f} → {losses[-1]:.3f}" if losses else "–"
    ratio = block.get("gradient_ratio")
    ratios = ratio if isinstance(ratio, list) else [] if ratio is None else [ratio]
    shown = ", ".join(f"{value:.2g}" for value in ratios) if any(ratios) else "–"
    own = (task["method"], variant or "–", task["seed"], block["block"], len(block["users"]), block.get("seconds", "–"))
    return [*map(str, own), str(block.get("best_epoch", "–")), ends, shown]


def _setting(results: Mapping[str, Any]) -> Iterator[str]:
    yield "<section id='setting'>\n<h2>Data and settings</h2>\n"
    yield f"<pre><code>{escape(str(results.get('command') or ''))}</code></pre>\n"
    data = dict(results["data"] or {})
    notes = data.pop("notes", None) or []
    if notes:
        yield "<ul>" + "".join(f"<li>{escape(str(note))}</li>" for note in notes) + "</ul>\n"
    for title, facts in (("Data", data), ("Machine", results.get("machine")), ("Settings", results.get("settings"))):
        if facts:
            yield f"<details><summary>{title}</summary><dl>"
            for key, value in facts.items():
                shown = value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
                yield f"<dt>{escape(str(key))}</dt><dd>{escape(shown)}</dd>"
            yield "</dl></details>\n"
    yield "</section>\n"
