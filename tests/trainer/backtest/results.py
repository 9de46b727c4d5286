"""Raw results as a backtest writes them, small enough to check by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

Ranks = Mapping[int, Sequence[int]]
"""Block -> rank of each of its users."""


def task(method: str, seed: int, ranks: Ranks, variant: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """more: per task, or `across` (stage -> block -> ranks), `ratio` and `weight` for each of its blocks.

    prequential: block -> (user, rank) of each next item that was asked for.
    """
    prequential = more.pop("prequential", {})
    across, ratio, weight = more.pop("across", {}), more.pop("ratio", [0.0]), more.pop("weight", 0.0)
    blocks = [
        {
            "block": block,
            "users": [f"u{i}" for i in range(len(own))],
            "ranks": list(own),
            "losses": [5.0, 4.5],
            "validation": [[1, 5.0]],
            "best_epoch": 1,
            "gradient_ratio": ratio,
            "penalty_weight": weight,
            "seconds": 2.0,
            **({"prequential": _columns(prequential[block])} if block in prequential else {}),
            "across": {str(other): list(r) for other, r in across.get(block, {}).items()},
        }
        for block, own in ranks.items()
    ]
    own = {"method": method, "variant": dict(variant or {}), "seed": seed, "blocks": blocks}
    return own | {"seconds": 4.0, "trainable_parameters": 1_000, "stored_bytes": 4_000} | more


def _columns(asked: Sequence[tuple[str, int]]) -> dict[str, Any]:
    return {"users": [user for user, _ in asked], "ranks": [rank for _, rank in asked]}


def raw(*tasks: Mapping[str, Any], blocks: int = 3, name: str = "small", **more: Any) -> dict[str, Any]:
    """blocks: in all, D_1 included."""
    data = {"name": name, "digest": "00", "users": 4, "items": 9, "interactions": [6, *[2] * (blocks - 1)]}
    return {
        "format": 1,
        "data": {**data, "split": "chronological", "notes": [f"a note on {name}"]},
        "settings": {"learning_rate_update": 0.002},
        "machine": {"cores": 2, "device": "cpu", "torch": "2"},
        "command": f"adaptide backtest --items {name}",
        "tasks": list(tasks),
        "groups": {},
        **more,
    }
