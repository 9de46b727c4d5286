"""The methods and variants of a backtest with their users' scores, and what each gains on its baseline. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.backtest.statistics import METRICS, Float64, bootstrap_intervals, mean_over_blocks, user_scores
from trainer.evaluation import by_user

SINGLE, PRETRAIN, PESO = "single-evolving", "pretrain", "peso"
POPULARITY, SASREC = "popularity", "sasrec"
TWO_TOWER_PRETRAIN = "lightgcn-pretrain"
_CUMULATIVE = [
    f"{family}-{own}"
    for family in ("inf-lora", "sum-lora", "sd-lora")
    for own in ("all", "latest", "all-inherit", "latest-inherit")
]
ORDER = (
    *("popularity", "sasrec", TWO_TOWER_PRETRAIN, "lightgcn-finetune"),
    *("lightgcn-contrastive", "lightgcn-piw", "lightgcn-pisa"),
    *(PRETRAIN, SINGLE, *_CUMULATIVE, PESO, "l2", "orthogonal", "output-kl", "rank-kl"),
)
"""Rows of the paper's table 2; before them the baselines of table 3, after them the regularisers of figure 2."""
_SHARED = {"learning_rate": "learning_rate_update", "rank": "lora_rank"}
"""What a variant shares with the single evolving LoRA that it is held against, and the setting behind it."""


@dataclass(slots=True)
class Entry:
    """One method, or a variant of it. cells: (seed, block) -> float64 [users, metrics]; tasks: their raw results."""

    method: str
    variant: Mapping[str, Any]
    cells: dict[tuple[int, int], Float64] = field(default_factory=dict)
    tasks: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return ", ".join([self.method, *(f"{name} {value}" for name, value in self.variant.items())])

    @property
    def seeds(self) -> list[int]:
        return sorted(int(task["seed"]) for task in self.tasks)

    def seeds_of(self, block: int) -> set[int]:
        return {seed for seed, own in self.cells if own == block}

    def seed_mean(self, block: int, seeds: Iterable[int]) -> Float64:
        """float64 [users, metrics]: each user's seeds averaged."""
        return np.asarray(np.mean([self.cells[seed, block] for seed in sorted(seeds)], axis=0))

    def rows(self) -> Iterable[Mapping[str, Any]]:
        """Every task's blocks."""
        return (row for task in self.tasks for row in task["blocks"])


def held_out(row: Mapping[str, Any]) -> Float64 | None:
    """Of the last item of every user that is scored."""
    return user_scores(row["ranks"]) if row["users"] else None


def next_items(row: Mapping[str, Any]) -> Float64 | None:
    asked = row.get("prequential")
    return by_user(user_scores(asked["ranks"]), asked["users"]) if asked and asked["users"] else None


def entries_of(raw: Mapping[str, Any], scores: Callable[[Mapping[str, Any]], Float64 | None]) -> list[Entry]:
    """scores: of a block's row, None where nobody is scored."""
    found: dict[str, Entry] = {}
    for task in raw["tasks"]:
        variant = task.get("variant") or {}
        entry = found.setdefault(f"{task['method']} {sorted(variant.items())}", Entry(task["method"], variant))
        entry.tasks.append(task)
        for row in task["blocks"]:
            if (own := scores(row)) is not None:
                entry.cells[int(task["seed"]), int(row["block"])] = own
    place = {name: i for i, name in enumerate(ORDER)}
    return sorted(found.values(), key=lambda e: (place.get(e.method, len(ORDER)), _order(e.variant)))


def _order(variant: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    return [
        (name, float(value) if isinstance(value, int | float) else 0.0, str(value)) for name, value in variant.items()
    ]


def baseline(entry: Entry, entries: Sequence[Entry], settings: Mapping[str, Any]) -> Entry | None:
    """Single evolving LoRA (lambda = 0) at the entry's own learning rate and rank, None when that has not been run.

    Its own variants are held against it as the settings have it.
    """
    singles = [other for other in entries if other.method == SINGLE]
    shared = {name: own for name, own in entry.variant.items() if name in _SHARED and entry.method != SINGLE}
    changed = {name: own for name, own in shared.items() if own != settings.get(_SHARED[name])}
    return next((other for wanted in (shared, changed) for other in singles if dict(other.variant) == wanted), None)


@dataclass(frozen=True, slots=True)
class Gain:
    """float64 [metrics]: difference and the baseline's means on the same cells; float64 [metrics, 2]: interval."""

    difference: Float64
    interval: Float64
    theirs: Float64


def _paired(entry: Entry, base: Entry) -> dict[int, tuple[Float64, Float64]]:
    """Per block with a common seed: the entry's and the baseline's scores, averaged over the common seeds."""
    shared = {block: entry.seeds_of(block) & base.seeds_of(block) for _, block in sorted(entry.cells)}
    return {b: (entry.seed_mean(b, own), base.seed_mean(b, own)) for b, own in sorted(shared.items()) if own}


def gains_over(
    pairs: Sequence[tuple[Entry, Entry | None]],
    users: Mapping[int, Sequence[str]],
    masks: Mapping[int, np.ndarray] | None = None,
) -> list[Gain | None]:
    """Gains of entries over their baselines; those over the same blocks share one bootstrap.

    users: per block who was scored. masks: those of them to take (bool [users]); blocks without any are left out.
    """
    if masks is not None:
        users = {
            b: [user for user, yes in zip(own, masks[b], strict=True) if yes] for b, own in users.items() if b in masks
        }
    cells: list[dict[int, tuple[Float64, Float64]]] = []
    for entry, base in pairs:
        own = {} if base is None else _paired(entry, base)
        if masks is not None:
            own = {b: (x[masks[b]], y[masks[b]]) for b, (x, y) in own.items() if b in masks and masks[b].any()}
        cells.append(own)
    found: list[Gain | None] = [None] * len(pairs)
    for blocks in {tuple(own) for own in cells if own}:
        members = [i for i, own in enumerate(cells) if tuple(own) == blocks]
        differences = [np.concatenate([cells[i][b][0] - cells[i][b][1] for i in members], axis=1) for b in blocks]
        means = mean_over_blocks(differences)
        intervals = bootstrap_intervals(differences, [users[b] for b in blocks])
        for place, i in enumerate(members):
            columns = slice(place * len(METRICS), (place + 1) * len(METRICS))
            theirs = mean_over_blocks([cells[i][b][1] for b in blocks])
            found[i] = Gain(means[columns], intervals[columns], theirs)
    return found


def gain_json(gain: Gain | None, metric: int) -> dict[str, Any] | None:
    if gain is None:
        return None
    difference, theirs = float(gain.difference[metric]), float(gain.theirs[metric])
    return {
        "difference": difference,
        "ci95": [float(gain.interval[metric, 0]), float(gain.interval[metric, 1])],
        "relative": difference / theirs if theirs > 0 else None,
    }
