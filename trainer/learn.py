"""One window learnt: streams in, a candidate adapter and everything measured on the way out. Writes nothing.

The scheduler's window, `adaptide trainer update` and a backtest all learn through here (DESIGN.md, idea 1).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.catalog.index import CatalogueIndex
from service.generation.backbone import Backbone, merge_lora
from service.generation.torch_engine import TorchModel
from service.recommend.ranking import Float64
from service.settings import Settings
from trainer.evaluation import (
    DEPTH,
    Metrics,
    metrics,
    model_ranks,
    popularity_ranks,
    user_means,
    user_ndcg,
    validation_loss,
)
from trainer.examples import Case, Examples, sample_cases
from trainer.fit import FitConfig, FitReport, fit
from trainer.gate import Comparison, compare
from trainer.lora import LoraBackbone
from trainer.methods.base import Method, State
from trainer.progress import Report, silent
from trainer.tiny import low_precision_pays


@dataclass(slots=True)
class Steps:
    """Duration and outcome of each step, in order, as the windows table keeps them."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    on_done: Callable[[], object] = lambda: None
    """Called after each step that succeeded, so that others can see how far the work has come."""

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """Time a step; put what came of it into the mapping."""
        row: dict[str, Any] = {"step": name}
        started = time.monotonic()
        self.rows.append(row)
        try:
            yield row
        except BaseException:
            row["outcome"] = "failed"
            raise
        finally:
            row["seconds"] = round(time.monotonic() - started, 3)
        self.on_done()


@dataclass(frozen=True, slots=True, eq=False)
class Learnt:
    """tensors: the candidate, None when no epoch beat the starting point on validation.

    ranks: per subject (candidate, incumbent, base, popularity) the test items' ranks, int64 [test cases].
    prequential: per subject but the candidate, metrics on next items of the window before it was trained on.
    gain: the incumbent against the bare base on those next items, NDCG@10 by user; None without such items.
    """

    tensors: Mapping[str, Tensor] | None
    fit: FitReport
    ranks: Mapping[str, NDArray[np.int64]]
    prequential: Mapping[str, Metrics]
    gain: Comparison | None

    def metrics(self, subject: str) -> Metrics:
        return metrics(self.ranks[subject])


def learn(
    backbone: Backbone,
    incumbent: State | None,
    method: Method,
    examples: Examples,
    prequential: Sequence[Case],
    index: CatalogueIndex,
    popularity: Float64,
    settings: Settings,
    steps: Steps,
    report: Report = silent,
) -> Learnt:
    """Adapt `incumbent` (None: the bare base) to a window and score it beside what it would replace.

    backbone: the unmerged base; it is the same afterwards. popularity: float64 [rows], as of before the window.
    """
    test = sample_cases(examples.test, settings.evaluation_users, settings.seed)
    scale = settings.lora_alpha / settings.lora_rank

    def served(tensors: State | None) -> TorchModel:
        merged = backbone if tensors is None else merge_lora(backbone, dict(tensors), scale)
        return TorchModel(merged, "evaluation", None, least_beams=max(DEPTH, settings.beams))

    subjects: dict[str, State | None] = {"base": None}
    if incumbent is not None:
        subjects["incumbent"] = incumbent
    cases = [*test, *prequential]
    with steps.step("evaluate_before") as row:
        ranks = {"popularity": popularity_ranks(cases, index, popularity)}
        for done, (name, state) in enumerate(subjects.items()):
            report("evaluate before", done, len(subjects))
            ranks[name] = model_ranks(served(state), cases, index, popularity)
        report("evaluate before", len(subjects), len(subjects))
        ranks.setdefault("incumbent", ranks["base"])
        row |= {"outcome": "scored", "test": len(test), "prequential": len(prequential)}
    before = {name: user_means(own[len(test) :], prequential) for name, own in ranks.items()}
    gain = None
    if prequential:
        served_now, bare = (user_ndcg(ranks[name][len(test) :], prequential) for name in ("incumbent", "base"))
        gain = compare(served_now, bare, confidence=settings.gate_confidence, seed=settings.seed)
    after = {name: own[: len(test)] for name, own in ranks.items()}

    with steps.step("fit") as row:
        tensors, fitted = _adapt(backbone, incumbent, method, examples, index, settings, report)
        row |= {"outcome": "adapted" if tensors is not None else "no_change", "best_epoch": fitted.best_epoch}
    if tensors is not None:
        with steps.step("evaluate_after") as row:
            report("evaluate after", 0, 1)
            after["candidate"] = model_ranks(served(tensors), test, index, popularity)
            report("evaluate after", 1, 1)
            row["outcome"] = "scored"
    return Learnt(tensors, fitted, after, before, gain)


def _adapt(
    backbone: Backbone,
    incumbent: State | None,
    method: Method,
    examples: Examples,
    index: CatalogueIndex,
    settings: Settings,
    report: Report,
) -> tuple[Mapping[str, Tensor] | None, FitReport]:
    """Train a LoRA on the backbone and take it off again."""
    lora = LoraBackbone.of(backbone, settings)
    try:
        penalty = method.start(lora, incumbent)
        validation = sample_cases(examples.validation, settings.evaluation_users, settings.seed)
        fitted = fit(
            lora.backbone,
            list(lora.parameters.values()),
            lambda random: examples.training,
            index.codes,
            update_fit_config(settings, backbone.device),
            evaluate=lambda: -validation_loss(lora.backbone, validation, index.codes),
            penalty=penalty,
            penalty_weight=method.weight,
            on_step=lambda done, total: report("fit", done, total),
        )
        return (lora.tensors() if fitted.best_epoch else None), fitted
    finally:
        lora.unwrap()


def update_fit_config(settings: Settings, device: torch.device) -> FitConfig:
    """How a window is trained."""
    return FitConfig(
        epochs=settings.update_epochs,
        batch_size=settings.update_batch_size,
        learning_rate=settings.learning_rate_update,
        weight_decay=settings.weight_decay,
        warmup=0.05,
        embedding_dropout=settings.embedding_dropout,
        residual_dropout=settings.residual_dropout,
        low_precision=low_precision_pays(device),
        seed=settings.seed,
    )
