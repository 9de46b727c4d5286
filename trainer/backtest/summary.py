"""Raw results of a backtest's tasks -> results.json, pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.errors import DatasetError
from trainer.backtest.entries import (
    POPULARITY,
    PRETRAIN,
    SASREC,
    TWO_TOWER_PRETRAIN,
    Entry,
    Gain,
    baseline,
    entries_of,
    gain_json,
    gains_over,
    held_out,
    next_items,
)
from trainer.backtest.statistics import (
    CONFIDENCE,
    METRICS,
    Float64,
    halves,
    mean_of_known,
    mean_over_blocks,
    transfer,
    user_scores,
)

NDCG_10 = METRICS.index("ndcg@10")
FORMAT = 1


def summarise(raw: Mapping[str, Any]) -> dict[str, Any]:
    """results.json from the raw results of trainer.backtest.runner.

    data, settings, machine, command, bases, notes as given; seeds: those run, where `complete` goes by those planned;
    blocks: the increments, D_2 being 2; not_begun: methods of which nothing is there; methods: by name, in the order
    of ORDER; variants: the sweeps, each naming its method and what it changes; prequential: the same metrics and gains
    on next items, asked for before their block was learnt, None in results of an earlier version. groups,
    prequential_groups: gains of every method within halves of the users, on either.
    Whatever is not there yet is None and `complete` false.
    Raises DatasetError when the results are of another format or their users do not match.
    """
    if raw.get("format") != FORMAT:
        raise DatasetError(f"raw results of format {raw.get('format')!r}; this version reads {FORMAT}, run it again")
    users = _users(raw)
    tested = _read(raw, held_out, users)
    asked = _read(raw, next_items, _asked_users(raw))
    last = max([len(raw["data"].get("interactions") or []), *users])
    blocks = list(range(2, last + 1))
    seeds = sorted({seed for entry in tested.entries for seed in entry.seeds})
    planned = raw.get("planned_seeds") or seeds
    summaries = [
        {
            "name": entry.name,
            "method": entry.method,
            "variant": dict(entry.variant),
            **_means(entry, gain, blocks, planned),
            "prequential": prequential,
            "against": None if base is None else {"method": base.method, "variant": dict(base.variant)},
            **_costs(entry),
            **_stages(entry, tested.entries, len(blocks) + 1),
        }
        for entry, base, gain, prequential in zip(
            tested.entries, tested.against, tested.gains(), _prequential(asked, blocks, planned), strict=True
        )
    ]
    done = sum(1 for task in raw["tasks"] if len(task["blocks"]) == len(blocks))
    return {
        **{key: raw.get(key) for key in ("format", "data", "settings", "machine", "command", "bases")},
        "seeds": seeds,
        "blocks": blocks,
        "confidence": CONFIDENCE,
        "tasks_done": done,
        "tasks_planned": raw.get("planned", len(raw["tasks"])),
        "not_begun": raw.get("not_begun") or [],
        "complete": done == raw.get("planned", len(raw["tasks"])) and all(s["complete"] for s in summaries),
        "methods": {s["method"]: s for s in summaries if not s["variant"]},
        "variants": [s for s in summaries if s["variant"]],
        "groups": _groups(raw.get("groups") or {}, tested),
        "prequential_groups": _groups(raw.get("prequential_groups") or {}, asked),
    }


@dataclass(frozen=True, slots=True)
class _Scored:
    """Every method's answers to the same questions. against: each entry's baseline; users: per block who is scored."""

    entries: list[Entry]
    against: list[Entry | None]
    users: Mapping[int, Sequence[str]]

    def gains(self) -> list[Gain | None]:
        return gains_over(list(zip(self.entries, self.against, strict=True)), self.users)


def _read(
    raw: Mapping[str, Any], scores: Callable[[Mapping[str, Any]], Float64 | None], users: Mapping[int, Sequence[str]]
) -> _Scored:
    entries = entries_of(raw, scores)
    return _Scored(entries, [baseline(entry, entries, raw.get("settings") or {}) for entry in entries], users)


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


def _asked_users(raw: Mapping[str, Any]) -> dict[int, list[str]]:
    """Per block who was asked for next items."""
    return {
        int(row["block"]): sorted(set(row["prequential"]["users"]))
        for task in raw["tasks"]
        for row in task["blocks"]
        if row.get("prequential")
    }


def _prequential(asked: _Scored, blocks: Sequence[int], seeds: Sequence[int]) -> list[dict[str, Any] | None]:
    """Per entry its means and gains on next items, asked for before their block was learnt."""
    return [
        {metric: own for metric, own in _means(entry, gain, blocks, seeds).items() if metric in METRICS}
        if entry.cells
        else None
        for entry, gain in zip(asked.entries, asked.gains(), strict=True)
    ]


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
            "vs_single_evolving": gain_json(gain, i),
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
    """NDCG@10 of the adapter after each stage on every block's sampled users, the seeds averaged; what was forgotten.

    Stage 1 is what pretrain of the same seed says, since it is adapter 1 on which every LoRA method starts; rankers
    say their own. Without it, or without a later stage, forgetting and transfer would be those of other cells, so they
    are None. Popularity has no stages: it is always that of the block before.
    """
    nothing: dict[str, Any] = {"stages": None, "forgetting": None, "backward_transfer": None, "forward_transfer": None}
    matrices = {} if entry.method == POPULARITY else _matrices(entry, blocks)
    start = TWO_TOWER_PRETRAIN if entry.method.startswith("lightgcn-") else PRETRAIN
    origin = next((other for other in entries if other.method == start and not other.variant), None)
    if origin is not None and entry.method != SASREC:
        for seed, first in _matrices(origin, blocks).items():
            if seed in matrices and np.isnan(matrices[seed][0]).all():
                matrices[seed][0] = first[1]
    whole = [own for own in matrices.values() if not np.isnan(own).all(axis=1).any()]
    shown = whole or list(matrices.values())
    if not shown or np.isnan(shown).all():
        return nothing
    found = [transfer(own) for own in whole]
    return {
        "stages": [[mean_of_known(cells) for cells in zip(*rows, strict=True)] for rows in zip(*shown, strict=True)],
        "forgetting": mean_of_known([own.forgetting for own in found]),
        "backward_transfer": mean_of_known([own.backward for own in found]),
        "forward_transfer": mean_of_known([own.forward for own in found]),
    }


def _matrices(entry: Entry, blocks: int) -> dict[int, Float64]:
    """By seed: float64 [stages, blocks], NaN where nothing was scored."""
    found: dict[int, Float64] = {}
    for task in entry.tasks:
        matrix = found.setdefault(int(task["seed"]), np.full((blocks, blocks), np.nan))
        stages = {1: task.get("first_stage") or {}}
        stages |= {int(row["block"]): row.get("across") or {} for row in task["blocks"]}
        for stage, across in stages.items():
            for block, ranks in across.items():
                if ranks:
                    matrix[stage - 1, int(block) - 1] = user_scores(ranks)[:, NDCG_10].mean()
    return found


def _groups(groups: Mapping[str, Any], scored: _Scored) -> dict[str, Any]:
    """Per group of users each entry's NDCG@10 gain over single evolving LoRA, and its own means.

    Halves by the block's median; users that are new in the block or known from before; those whose test item is new or
    known. A variant is called by its method and what it changes: `peso, ratio 0.1`.
    """
    entries = [entry for entry in scored.entries if entry.cells]
    pairs = [
        (e, b) for e, b in zip(scored.entries, scored.against, strict=True) if e.cells and b is not None and e is not b
    ]
    if not groups or not entries:
        return {}
    found: dict[str, Any] = {}
    for name, masks in _masks(groups).items():
        gains = zip(pairs, gains_over(pairs, scored.users, masks), strict=True)
        found[name] = {
            "users": {str(block): int(mask.sum()) for block, mask in masks.items()},
            "gains": {entry.name: gain_json(gain, NDCG_10) for (entry, _), gain in gains},
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
