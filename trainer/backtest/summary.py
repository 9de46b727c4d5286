"""Raw results of a backtest's tasks -> results.json, pure; over 300 lines, for each table reads the same entries."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from service.errors import DatasetError
from trainer.backtest.statistics import (
    CONFIDENCE,
    METRICS,
    Float64,
    bootstrap_intervals,
    halves,
    mean_over_blocks,
    transfer,
    user_scores,
)

SINGLE, PRETRAIN, PESO = "single-evolving", "pretrain", "peso"
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
NDCG_10 = METRICS.index("ndcg@10")
FORMAT = 1


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


def summarise(raw: Mapping[str, Any]) -> dict[str, Any]:
    """results.json from the raw results of trainer.backtest.runner.

    data, settings, machine, command, bases, notes as given; seeds: those run; blocks: the increments, D_2 being 2;
    methods: by name, in the order of ORDER; variants: the sweeps, each naming its method and what it changes;
    groups: gains of every method within halves of the users. Whatever is not there yet is None and `complete` false.
    Raises DatasetError when the results are of another format or their users do not match.
    """
    if raw.get("format") != FORMAT:
        raise DatasetError(f"raw results of format {raw.get('format')!r}; this version reads {FORMAT}, run it again")
    users = _users(raw)
    entries = _entries(raw)
    last = max([len(raw["data"].get("interactions") or []), *users])
    blocks = list(range(2, last + 1))
    seeds = sorted({seed for entry in entries for seed in entry.seeds})
    against = [_baseline(entry, entries, raw.get("settings") or {}) for entry in entries]
    gains = _gains(list(zip(entries, against, strict=True)), users)
    summaries = [
        {
            "method": entry.method,
            "variant": dict(entry.variant),
            **_means(entry, gain, blocks, seeds),
            "against": None if base is None else {"method": base.method, "variant": dict(base.variant)},
            **_costs(entry),
            **_stages(entry, entries, len(blocks) + 1),
        }
        for entry, base, gain in zip(entries, against, gains, strict=True)
    ]
    done = sum(1 for task in raw["tasks"] if len(task["blocks"]) == len(blocks))
    return {
        **{key: raw.get(key) for key in ("format", "data", "settings", "machine", "command", "bases")},
        "seeds": seeds,
        "blocks": blocks,
        "confidence": CONFIDENCE,
        "tasks_done": done,
        "tasks_planned": raw.get("planned", len(raw["tasks"])),
        "complete": done == raw.get("planned", len(raw["tasks"])) and all(s["complete"] for s in summaries),
        "methods": {s["method"]: s for s in summaries if not s["variant"]},
        "variants": [s for s in summaries if s["variant"]],
        "groups": _groups(raw.get("groups") or {}, entries, against, users),
    }


def _users(raw: Mapping[str, Any]) -> dict[int, list[str]]:
    """Per block who was scored, which is the same for every task."""
    users: dict[int, list[str]] = {}
    for task in raw["tasks"]:
        for row in task["blocks"]:
            own = list(row["users"])
            if users.setdefault(int(row["block"]), own) != own or len(row["ranks"]) != len(own):
                raise DatasetError(
                    f"{task['method']}, seed {task['seed']}, block {row['block']} was scored on other users than the "
                    "tasks before it; remove its folder and run the backtest again"
                )
    for block, group in (raw.get("groups") or {}).items():
        if users.get(int(block), group["users"]) != list(group["users"]):
            raise DatasetError(f"the user groups of block {block} are not those of its tasks; run the backtest again")
    return users


def _entries(raw: Mapping[str, Any]) -> list[Entry]:
    found: dict[str, Entry] = {}
    for task in raw["tasks"]:
        variant = task.get("variant") or {}
        entry = found.setdefault(f"{task['method']} {sorted(variant.items())}", Entry(task["method"], variant))
        entry.tasks.append(task)
        for row in task["blocks"]:
            block = int(row["block"])
            if row["users"]:
                entry.cells[int(task["seed"]), block] = user_scores(row["ranks"])
    place = {name: i for i, name in enumerate(ORDER)}
    return sorted(found.values(), key=lambda e: (place.get(e.method, len(ORDER)), _order(e.variant)))


def _order(variant: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    return [
        (name, float(value) if isinstance(value, int | float) else 0.0, str(value)) for name, value in variant.items()
    ]


def _baseline(entry: Entry, entries: Sequence[Entry], settings: Mapping[str, Any]) -> Entry | None:
    """Single evolving LoRA (lambda = 0) at the entry's own learning rate, None when that has not been run."""
    rate = entry.variant.get("learning_rate")
    singles = [other for other in entries if other.method == SINGLE]
    same = [other for other in singles if other.variant.get("learning_rate") == rate]
    if not same and rate is not None and rate == settings.get("learning_rate_update"):
        same = [other for other in singles if not other.variant]
    return same[0] if same else None


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


def _gains(
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


def _gain_json(gain: Gain | None, metric: int) -> dict[str, Any] | None:
    if gain is None:
        return None
    difference, theirs = float(gain.difference[metric]), float(gain.theirs[metric])
    return {
        "difference": difference,
        "ci95": [float(gain.interval[metric, 0]), float(gain.interval[metric, 1])],
        "relative": difference / theirs if theirs > 0 else None,
    }


def _means(entry: Entry, gain: Gain | None, blocks: Sequence[int], seeds: Sequence[int]) -> dict[str, Any]:
    scored = [b for b in blocks if entry.seeds_of(b)]
    by_block = {b: entry.seed_mean(b, entry.seeds_of(b)).mean(axis=0) for b in scored}
    whole = [s for s in seeds if all((s, b) in entry.cells for b in blocks)]
    by_seed = {s: mean_over_blocks([entry.cells[s, b] for b in blocks]) for s in whole}
    found: dict[str, Any] = {"seeds": entry.seeds, "complete": len(whole) == len(seeds) and bool(seeds)}
    for i, metric in enumerate(METRICS):
        found[metric] = {
            "mean": float(np.mean([by_block[b][i] for b in scored])) if scored else None,
            "per_block": [float(by_block[b][i]) if b in by_block else None for b in blocks],
            "per_seed": {str(s): float(by_seed[s][i]) for s in whole},
            "vs_single_evolving": _gain_json(gain, i),
        }
    return found


def _costs(entry: Entry) -> dict[str, Any]:
    weights = [float(row["penalty_weight"]) for row in entry.rows() if row.get("penalty_weight")]
    ratios = [_ratio(row["gradient_ratio"]) for row in entry.rows() if row.get("penalty_weight")]
    known = [ratio for ratio in ratios if ratio is not None]
    return {
        "gradient_ratio": float(np.mean(known)) if known else None,
        "penalty_weight": float(np.mean(weights)) if weights else None,
        "seconds": float(np.mean([task["seconds"] for task in entry.tasks])),
        "trainable_parameters": max(int(task.get("trainable_parameters") or 0) for task in entry.tasks),
        "stored_bytes": max(int(task.get("stored_bytes") or 0) for task in entry.tasks),
    }


def _ratio(value: float | Sequence[float] | None) -> float | None:
    """A block's ||g_prox|| / ||g_ce||: its epochs' mean where there is one for each."""
    if value is None or isinstance(value, int | float):
        return value
    return float(np.mean(value)) if len(value) else None


def _stages(entry: Entry, entries: Sequence[Entry], blocks: int) -> dict[str, Any]:
    """NDCG@10 of the adapter after each stage on every block's sampled users, the seeds averaged.

    Stage 1 is what pretrain says, since it is adapter 1 on which every LoRA method starts.
    """
    matrix = _matrix(entry, blocks)
    start = TWO_TOWER_PRETRAIN if entry.method.startswith("lightgcn-") else PRETRAIN
    origin = [other for other in entries if other.method == start and not other.variant]
    if origin and entry.method not in ("popularity", "sasrec"):
        matrix[0] = _matrix(origin[0], blocks)[1]
    if np.isnan(matrix).all():
        return {"stages": None, "forgetting": None, "backward_transfer": None, "forward_transfer": None}
    found = transfer(matrix)
    return {
        "stages": [[None if np.isnan(value) else float(value) for value in row] for row in matrix],
        "forgetting": found.forgetting,
        "backward_transfer": found.backward,
        "forward_transfer": found.forward,
    }


def _matrix(entry: Entry, blocks: int) -> Float64:
    cells: dict[tuple[int, int], list[float]] = {}
    for row in entry.rows():
        for block, ranks in (row.get("across") or {}).items():
            if ranks:
                cells.setdefault((int(row["block"]), int(block)), []).append(user_scores(ranks)[:, NDCG_10].mean())
    matrix = np.full((blocks, blocks), np.nan)
    for (stage, block), values in cells.items():
        matrix[stage - 1, block - 1] = float(np.mean(values))
    return matrix


def _groups(
    groups: Mapping[str, Any],
    entries: Sequence[Entry],
    against: Sequence[Entry | None],
    users: Mapping[int, Sequence[str]],
) -> dict[str, Any]:
    """Per group of users each entry's NDCG@10 gain over single evolving LoRA, and its own means.

    Halves by the block's median; users that are new in the block or known from before; those whose test item is new or
    known. A variant is called by its method and what it changes: `peso, ratio 0.1`.
    """
    pairs = [(e, b) for e, b in zip(entries, against, strict=True) if b is not None and e is not b]
    if not groups or not entries:
        return {}
    found: dict[str, Any] = {}
    for name, masks in _masks(groups).items():
        gains = zip(pairs, _gains(pairs, users, masks), strict=True)
        found[name] = {
            "users": {str(block): int(mask.sum()) for block, mask in masks.items()},
            "gains": {entry.name: _gain_json(gain, NDCG_10) for (entry, _), gain in gains},
            "metrics": {entry.name: _group_means(entry, masks) for entry in entries},
        }
    return found


def _masks(groups: Mapping[str, Any]) -> dict[str, dict[int, np.ndarray]]:
    """Group -> block -> bool [users]."""
    names = ("drifted", "steady", "long history", "short history", "new users", "known users")
    masks: dict[str, dict[int, np.ndarray]] = {name: {} for name in (*names, "new items", "known items")}
    for block, own in groups.items():
        new = np.array(own["history"]) == 0
        found = [*halves(own["drift"]), *halves(own["history"]), new, ~new]
        if "new_items" in own:  # results of an earlier version lack it
            unseen = np.array(own["new_items"], dtype=np.bool_)
            found += [unseen, ~unseen]
        for name, mask in zip(masks, found, strict=False):
            masks[name][int(block)] = mask
    return {name: own for name, own in masks.items() if own}


def _group_means(entry: Entry, masks: Mapping[int, np.ndarray]) -> dict[str, float] | None:
    """Of the blocks in which the group has users, seeds averaged; None where there are none."""
    blocks = [b for b, mask in masks.items() if mask.any() and entry.seeds_of(b)]
    if not blocks:
        return None
    means = mean_over_blocks([entry.seed_mean(b, entry.seeds_of(b))[masks[b]] for b in blocks])
    return dict(zip(METRICS, means.tolist(), strict=True))
