"""The demo's table: per window what popularity, the frozen base and the live adapter would have shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

METRICS = ("hit@5", "hit@10", "ndcg@5", "ndcg@10")
SUBJECTS = ("popularity", "base", "adapter")


@dataclass(frozen=True, slots=True)
class Row:
    """One window.

    live: per subject the metrics on next items of the window, up to 10 a user, before anything was trained on it; the
    adapter is the one that served then. gain: that adapter against the base by NDCG@10, with a paired bootstrap
    interval over users. held_out: on each user's last item, after the update, which never trains on it; the adapter is
    the one that serves afterwards. seconds: from closing the window to its outcome.
    """

    window: int
    events: int
    users: int
    verdict: str
    seconds: float
    live: Mapping[str, Mapping[str, float]]
    held_out: Mapping[str, Mapping[str, float]]
    gradient_ratio: float
    gain: Mapping[str, Any] | None

    @classmethod
    def of(cls, number: int, window: Mapping[str, Any], seconds: float) -> "Row":
        """From a window as /v1/admin/windows shows it."""
        statistics = window["statistics"] or {}
        before = statistics.get("prequential", {})
        after = {e["subject"]: {name: e[name.replace("@", "_")] for name in METRICS} for e in window["evaluations"]}
        serving = "candidate" if window["verdict"] == "promoted" else "incumbent"
        ratios = statistics.get("gradient_ratio") or [0.0]
        return cls(
            window=number,
            events=window["events"],
            users=before.get("base", {}).get("users", 0),
            verdict=window["verdict"],
            seconds=round(seconds, 1),
            live=_subjects(before, "incumbent"),
            held_out=_subjects(after, serving),
            gradient_ratio=sum(ratios) / len(ratios),
            gain=statistics.get("gain_over_base"),
        )


def _subjects(found: Mapping[str, Mapping[str, float]], adapter: str) -> dict[str, dict[str, float]]:
    names = {"popularity": "popularity", "base": "base", "adapter": adapter}
    return {
        subject: {metric: round(found.get(name, {}).get(metric, 0.0), 4) for metric in METRICS}
        for subject, name in names.items()
    }


def table_json(rows: Sequence[Row]) -> dict[str, Any]:
    """CONTRACT.md, result files: popularity, base, adapter are the live figures; held_out holds the others."""
    windows = [
        {
            "window": row.window,
            "events": row.events,
            "users": row.users,
            "verdict": row.verdict,
            "seconds": row.seconds,
            **row.live,
            "held_out": row.held_out,
            "gradient_ratio": round(row.gradient_ratio, 5),
            "gain_over_base": row.gain,
        }
        for row in rows
    ]
    return {"windows": windows, "mean": {subject: mean(rows, subject) for subject in SUBJECTS}}


def mean(rows: Sequence[Row], subject: str) -> dict[str, float]:
    """Mean of the live figures over windows."""
    return {m: round(sum(row.live[subject][m] for row in rows) / max(len(rows), 1), 4) for m in METRICS}


def print_table(rows: Sequence[Row], console: Console) -> None:
    """Live figures, one line a window and subject, and the means; fits 80 columns."""
    table = Table(
        *("window", "events", "users", "verdict", "s", "ranked by", "Hit@5", "Hit@10", "NDCG@5", "NDCG@10"),
        title="Next items of each window, asked before the model was trained on it",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for row in rows:
        head = [str(row.window), f"{row.events:,}", str(row.users), row.verdict, f"{row.seconds:.0f}"]
        for subject in SUBJECTS:
            table.add_row(*head, subject, *(f"{row.live[subject][metric]:.4f}" for metric in METRICS))
            head = [""] * len(head)
    head = ["mean", "", "", "", ""]
    for subject in SUBJECTS:
        own = mean(rows, subject)
        table.add_row(*head, subject, *(f"{own[metric]:.4f}" for metric in METRICS), style="bold")
        head = [""] * len(head)
    console.print(table)
    for row in rows:
        if row.gain and not row.gain["identical"]:
            low, high = row.gain["interval"]
            console.print(
                f"window {row.window}: adapter - base, NDCG@10: {row.gain['difference']:+.4f} "
                f"({row.gain['confidence']:.0%} interval {low:+.4f} to {high:+.4f}, {row.gain['users']} users)",
                highlight=False,
            )
