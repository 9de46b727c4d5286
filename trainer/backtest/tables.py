"""The tables of a backtest, as text cells that the HTML report and Markdown both print."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from trainer.backtest.entries import PESO, SINGLE
from trainer.backtest.statistics import METRICS

NOTHING = "–"
MARK = " *"
"""Behind a row that rests on fewer seeds or blocks than were planned."""
_YES_OR_NO = {True: "yes", False: "no"}
LABELS = {
    "lambda": "λ",
    "ratio": "λ as a share of the first step's gradient",
    "learning_rate": "learning rate",
    "rank": "LoRA rank",
    "group_by": "softmax over",
}
_DESIGN = (
    *("sum-lora-all", "sum-lora-latest", "sum-lora-all-inherit", "sum-lora-latest-inherit"),
    "sd-lora-latest-inherit",
)
REGULARISERS = (PESO, "l2", "orthogonal", "output-kl", "rank-kl")


class Cell(NamedTuple):
    text: str
    best: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """key: short and stable, for anchors. note: how to read it. The first column names the row."""

    key: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def tables(results: Mapping[str, Any]) -> list[Table]:
    """Those that have rows."""
    made = (
        _main(results),
        _blocks(results),
        _prequential(results),
        _design(results),
        _sweeps(results),
        _groups(results),
        _asked_groups(results),
        _forgetting(results),
    )
    return [table for table in made if table.rows]


def method_label(summary: Mapping[str, Any]) -> str:
    """The method, marked when seeds or blocks of it are missing."""
    return str(summary["method"]) + ("" if summary["complete"] else MARK)


def variant_label(variant: Mapping[str, Any]) -> str:
    """`λ 5`; empty for none."""
    return ", ".join(f"{LABELS.get(name, name)} {number(value)}" for name, value in variant.items())


def number(value: Any) -> str:
    """A setting's value as people write it."""
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def score(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def gain(found: Mapping[str, Any] | None) -> str:
    """`+0.0012 (+8.0 %)`."""
    if found is None:
        return NOTHING
    relative = "" if found["relative"] is None else f" ({found['relative']:+.1%})".replace("%", " %")
    return f"{found['difference']:+.4f}{relative}"


def interval(found: Mapping[str, Any] | None) -> str:
    return NOTHING if found is None else f"{found['ci95'][0]:+.4f} to {found['ci95'][1]:+.4f}"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:.1f} h"


def size(stored: int) -> str:
    """Bytes as people say them, in powers of 1,000."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if stored >= scale:
            return f"{stored / scale:.1f} {unit}"
    return f"{stored} B"


def _gained(summary: Mapping[str, Any], metric: Mapping[str, Any]) -> tuple[Cell, Cell]:
    """A summary's gain in one metric and its interval; of what it is held against itself: nothing."""
    itself = summary["method"] == SINGLE and not summary["variant"]
    found = None if itself else metric["vs_single_evolving"]
    return Cell(gain(found)), Cell(interval(found))


def _main(results: Mapping[str, Any]) -> Table:
    methods = list(results["methods"].values())
    comparable = [s for s in methods if s["complete"]] or methods  # others are means over other blocks
    best = {m: max((s[m]["mean"] for s in comparable if s[m]["mean"] is not None), default=None) for m in METRICS}
    rows = tuple(
        (
            Cell(method_label(s)),
            *(Cell(score(s[m]["mean"]), s in comparable and s[m]["mean"] == best[m] is not None) for m in METRICS),
            *_gained(s, s["ndcg@10"]),
            Cell(duration(s["seconds"])),
            Cell(f"{s['trainable_parameters']:,}"),
            Cell(size(s["stored_bytes"])),
            Cell(NOTHING if s["gradient_ratio"] is None else f"{s['gradient_ratio']:.4g}"),
        )
        for s in methods
    )
    head = ("Method", "Hit@5", "Hit@10", "NDCG@5", "NDCG@10", "NDCG@10 vs single", "95 % interval")
    costs = ("Time a seed", "Trained", "Stored", "Gradient ratio")
    return Table("main", "All methods", (*head, *costs), rows, _MAIN_NOTE + _not_learnt(results) + _missing(methods))


_MAIN_NOTE = (
    "Means over users, then over blocks, then over seeds. The gain is against single evolving LoRA (λ = 0) with the "
    "same seeds. Its interval is a paired bootstrap over users, each drawn with all of their blocks: what other users "
    "might have given with the seeds that were run, not what other seeds might. Trained: parameters; stored: what the "
    "next block needs; gradient ratio: ‖proximal‖ / ‖cross-entropy‖."
)


def _not_learnt(results: Mapping[str, Any]) -> str:
    blocks = (results["data"] or {}).get("not_learnt") or []
    if not blocks:
        return ""
    which = f"block{'' if len(blocks) == 1 else 's'} {', '.join(map(str, blocks))}"
    return (
        f" Of {which} there is nothing to train on or nothing to validate by: LoRA methods went on as they were there, "
        "as the updater skips such a window."
    )


def _blocks(results: Mapping[str, Any]) -> Table:
    rows = tuple(
        (Cell(method_label(s)), *(Cell(score(value)) for value in s["ndcg@10"]["per_block"]), Cell(_spread(s)))
        for s in results["methods"].values()
    )
    head = ("Method", *(f"Block {block}" for block in results["blocks"]), "Seeds, lowest to highest")
    return Table("blocks", "NDCG@10 block by block", head, rows)


def _prequential(results: Mapping[str, Any]) -> Table:
    asked = [s for s in (*results["methods"].values(), *results["variants"]) if s["prequential"]]
    rows = tuple(
        (
            Cell(", ".join(filter(None, (method_label(s), variant_label(s["variant"]))))),
            *(Cell(score(value)) for value in s["prequential"]["ndcg@10"]["per_block"]),
            Cell(score(s["prequential"]["ndcg@10"]["mean"])),
            *_gained(s, s["prequential"]["ndcg@10"]),
        )
        for s in asked
    )
    head = ("Method", *(f"Block {block}" for block in results["blocks"]), "NDCG@10", "vs single", "95 % interval")
    note = (
        "NDCG@10 of next items of a block's users, however few their interactions, up to "
        "ADAPTIDE_EVALUATION_ITEMS_PER_USER of each, asked for before anything of the block is learnt: what the "
        "service would have shown. In the first block every LoRA method is still the base. Averaged over a user's "
        "items, then as in the other tables."
    )
    return Table("prequential", "Next items, before they are learnt", head, rows, note + _missing(asked))


def _spread(summary: Mapping[str, Any]) -> str:
    own = list(summary["ndcg@10"]["per_seed"].values())
    return f"{min(own):.4f} to {max(own):.4f}" if len(own) > 1 else NOTHING


def _design(results: Mapping[str, Any]) -> Table:
    chosen = [results["methods"][name] for name in _DESIGN if name in results["methods"]]
    beside = results.get("beside") or {}
    other = beside.get("methods", {})
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            Cell(method_label(s)),
            Cell(_YES_OR_NO[s["method"].startswith("sd-lora")]),
            Cell(_YES_OR_NO["latest" in s["method"]]),
            Cell(_YES_OR_NO["inherit" in s["method"]]),
            *_gained(s, s["ndcg@5"]),
            *_beside(s, other.get(s["method"])),
        )
        for s in chosen
    )
    head: tuple[str, ...] = ("Method", "Learnable magnitudes", "Only latest", "Inherits", "NDCG@5 vs single")
    head += ("95 % interval", f"NDCG@5 vs single, {beside.get('split', '')}", "95 % interval", "Difference")
    if not other:
        head = head[:6]
        rows = tuple(row[:6] for row in rows)
    split = (results.get("data") or {}).get("split")
    note = f"Split: {split}. The paper sets a chronological and a user-disjoint run side by side (table 1)."
    return Table("design", "Design choices of cumulative LoRA", head, rows, note + _missing(chosen))


def _beside(own: Mapping[str, Any], other: Mapping[str, Any] | None) -> tuple[Cell, Cell, Cell]:
    """The same method on the other split, and by how many per cent it gains more there than here."""
    found = other["ndcg@5"]["vs_single_evolving"] if other else None
    here = own["ndcg@5"]["vs_single_evolving"]
    known = found and here and found["relative"] is not None and here["relative"] is not None
    difference = f"{found['relative'] - here['relative']:+.1%}".replace("%", " %") if known and found else NOTHING
    return Cell(gain(found)), Cell(interval(found)), Cell(difference)


def _sweeps(results: Mapping[str, Any]) -> Table:
    rows = tuple(
        (
            Cell(method_label(s)),
            Cell(variant_label(s["variant"])),
            Cell(score(s["ndcg@10"]["mean"])),
            *_gained(s, s["ndcg@10"]),
            Cell(NOTHING if s["penalty_weight"] is None else f"{s['penalty_weight']:.4g}"),
            Cell(NOTHING if s["gradient_ratio"] is None else f"{s['gradient_ratio']:.4g}"),
        )
        for s in results["variants"]
    )
    head = ("Method", "Variant", "NDCG@10", "vs single", "95 % interval", "λ", "Gradient ratio")
    note = (
        "Against single evolving LoRA (λ = 0) at the same learning rate and rank; its own variants against it "
        "as the settings have it." + _missing(results["variants"])
    )
    return Table("sweeps", "Sweeps", head, rows, note)


def _groups(results: Mapping[str, Any]) -> Table:
    note = (
        "NDCG@10 against single evolving LoRA. Drifted: the first codes of what a user took in the block lie further "
        "from those before it (Jensen-Shannon distance) than the median user's; long: more interactions before the "
        "block than the median user's. Where half of the users or more share the largest value, they are set against "
        "all others. New users did nothing before the block; new items are test items that nobody had taken before it."
    )
    return _gains_within("groups", "Who gains", results["groups"], note, results)


def _asked_groups(results: Mapping[str, Any]) -> Table:
    note = (
        "As above, on the next items that are asked for before a block is learnt; the groups are halves of their users."
    )
    groups = results.get("prequential_groups") or {}  # results of an earlier version lack it
    return _gains_within("prequential-groups", "Who gains, of next items", groups, note, results)


def _gains_within(key: str, title: str, groups: Mapping[str, Any], note: str, results: Mapping[str, Any]) -> Table:
    summaries = {s["name"]: s for s in (*results["methods"].values(), *results["variants"])}
    names = [name for own in list(groups.values())[:1] for name in own["gains"]]
    names = [name for name in names if any(own["gains"].get(name) for own in groups.values())]
    names.sort(key=lambda name: name.partition(",")[0] != PESO)

    def cell(name: str, group: str) -> Cell:
        found = groups[group]["gains"].get(name)
        return Cell(NOTHING if found is None else f"{gain(found)}, {interval(found)}")

    shown = [summaries[name] for name in names]
    marked = [name + ("" if own["complete"] else MARK) for name, own in zip(names, shown, strict=True)]
    rows = tuple(
        (Cell(label), *(cell(name, group) for group in groups)) for label, name in zip(marked, names, strict=True)
    )
    return Table(key, title, ("Method", *(name.capitalize() for name in groups)), rows, note + _missing(shown))


def _forgetting(results: Mapping[str, Any]) -> Table:
    keys = ("forgetting", "backward_transfer", "forward_transfer")
    chosen = [s for s in results["methods"].values() if s["stages"]]
    rows = tuple(
        (Cell(method_label(s)), *(Cell(NOTHING if s[key] is None else f"{s[key]:+.4f}") for key in keys))
        for s in chosen
    )
    note = (
        "NDCG@10 on the same users of every block, for each seed, then averaged. Forgetting: best since a block was "
        "learnt minus after the last one; backward: after the last one minus right after its own; forward: just before "
        "a block minus with adapter 1."
    )
    if any(s["forgetting"] is None for s in chosen):
        note += (
            f" {NOTHING}: a stage is missing; what adapter 1 knows is measured by pretrain (and lightgcn-pretrain), so "
            "run it too, with the same seeds."
        )
    return Table("forgetting", "Forgetting and transfer", ("Method", "Forgetting", "Backward", "Forward"), rows, note)


def _missing(summaries: Sequence[Mapping[str, Any]]) -> str:
    return "" if all(s["complete"] for s in summaries) else " * Not every seed and block is done."
