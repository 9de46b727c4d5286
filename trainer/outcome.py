"""What one update comes to: the parts it is made of and how they are written down and shown."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from service.adapters.artifacts import VerifiedBase
from service.adapters.repository import NewAdapter, Pointer
from service.generation.backbone import Backbone
from service.kit.db import Database
from service.settings import Settings
from service.users.service import Learners
from service.windows import repository as window_rows
from service.windows.repository import Evaluation, Window
from service.windows.states import WindowState
from trainer.evaluation import Metrics, metrics
from trainer.examples import Examples
from trainer.gate import Verdict
from trainer.learn import Learnt, Steps
from trainer.methods.base import Adapter
from trainer.streams import WindowStreams


@dataclass(frozen=True, slots=True)
class Range:
    """A range of the event sequence to learn from: after_seq exclusive, through_seq inclusive."""

    after_seq: int
    through_seq: int


def open_range(database: Database, through_seq: int | None) -> Range:
    """The events after the last sealed window, up to `through_seq` or all."""
    with database.read() as connection:
        after = window_rows.last_through_seq(connection)
        _, highest = window_rows.measure(connection, after, through_seq, None)
    return Range(after, highest)


@dataclass(frozen=True, slots=True, eq=False)
class Serving:
    """What serves when an update begins: the pointer, its verified base and the incumbent (None: the bare base)."""

    pointer: Pointer
    base: VerifiedBase
    backbone: Backbone
    incumbent: Adapter | None


@dataclass(slots=True)
class Update:
    """What came of one range. verdict is None until it is decided; `reason` says why it was skipped or refused."""

    verdict: WindowState | None = None
    reason: str | None = None
    serving: Serving | None = None
    learnt: Learnt | None = None
    gate: Verdict | None = None
    newest: datetime | None = None
    basis: dict[str, Any] = field(default_factory=dict)
    """What the weights depend on (trainer.reproduce)."""
    learners: Learners | None = None
    statistics: dict[str, Any] = field(default_factory=dict)
    steps: Steps = field(default_factory=Steps)


def counts(data: WindowStreams, examples: Examples) -> dict[str, Any]:
    """What the window held, for its statistics."""
    return {
        "interactions": data.events,
        "unknown_items": data.unknown,
        "users": len(data.streams),
        "targets": examples.targets,
        "capped_users": examples.capped_users,
        "capped_targets": examples.capped_targets,
        "suspected_bots": data.suspects,
        "suspected_bot_share": round(data.suspect_events / data.events, 4) if data.events else 0.0,
        "test_users": len(examples.test),
        "trained_through": data.newest.isoformat() if data.newest else None,
    }


def learning(learnt: Learnt) -> dict[str, Any]:
    """What came of the training, for the window's statistics. Losses are nats per item."""
    fitted = learnt.fit
    return {
        "losses": fitted.losses,
        "validation_loss": [[epoch, -score] for epoch, score in fitted.scores],
        "best_epoch": fitted.best_epoch,
        "proximal": fitted.penalties,
        "gradient_ratio": fitted.gradient_ratio,
        "penalty_weight": fitted.penalty_weight,
        "gain_over_base": learnt.gain.as_json() if learnt.gain else None,
        "prequential": _by_subject(learnt.prequential),
        "groups": {group: _by_subject(found) for group, found in learnt.groups.items()},
    }


def _by_subject(found: Mapping[str, Metrics]) -> dict[str, dict[str, float]]:
    return {subject: {"users": own.users, **own.as_dict()} for subject, own in found.items()}


def training_settings(learnt: Learnt, settings: Settings, basis: dict[str, Any]) -> dict[str, Any]:
    """What decided the candidate beside its data, as the registry and the manifest keep it."""
    assert learnt.candidate is not None  # noqa: S101  # asked of one that is published
    return {
        "rank": learnt.candidate.rank,
        "alpha": learnt.candidate.scale * learnt.candidate.rank,
        "dropout": settings.lora_dropout,
        "learning_rate": settings.learning_rate_update,
        "epochs": len(learnt.fit.losses),
        "batch_size": settings.update_batch_size,
        "proximal_weight": learnt.fit.penalty_weight,
        "proximal_group_by": settings.proximal_group_by.value,
        "seed": settings.seed,
        "reproduce": basis,
    }


def evaluations(update: Update, candidate: NewAdapter | None) -> list[Evaluation]:
    """Every subject on the held-out test items, as the evaluations table keeps them."""
    if update.learnt is None or update.serving is None:
        return []
    versions = {
        "incumbent": update.serving.pointer.adapter_version,
        "candidate": candidate.adapter_version if candidate else None,
    }
    rows = []
    for subject in update.learnt.ranks:
        found = update.learnt.metrics(subject)
        comparison = update.gate.comparison if update.gate and subject == "candidate" else None
        rows.append(
            Evaluation(
                subject=subject,
                users=found.users,
                hit_5=found.hit_5,
                hit_10=found.hit_10,
                ndcg_5=found.ndcg_5,
                ndcg_10=found.ndcg_10,
                adapter_version=versions.get(subject),
                comparison=comparison.as_json() if comparison else None,
            )
        )
    return rows


def window_summary(window: Window) -> dict[str, Any]:
    """What a command prints of a concluded window."""
    return {
        "window": window.window_id,
        "events": window.events,
        "verdict": window.verdict,
        "reason": window.reason,
        "candidate": window.candidate_version,
        "metrics": {
            e.subject: {"hit@5": e.hit_5, "hit@10": e.hit_10, "ndcg@5": e.ndcg_5, "ndcg@10": e.ndcg_10}
            for e in window.evaluations
        },
        "statistics": window.statistics,
        "steps": window.steps,
    }


def rehearsal_summary(update: Update) -> dict[str, Any]:
    """The same of a dry run."""
    ranks = update.learnt.ranks if update.learnt else {}
    return {
        "window": None,
        "events": update.statistics.get("interactions", 0),
        "verdict": update.verdict,
        "reason": update.reason,
        "candidate": None,
        "metrics": {subject: metrics(own).as_dict() for subject, own in ranks.items()},
        "statistics": update.statistics,
        "steps": update.steps.rows,
    }
