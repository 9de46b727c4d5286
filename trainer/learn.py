"""One window learnt: streams in, a candidate adapter and everything measured on the way out. Writes nothing.

The scheduler's window, `adaptide trainer update` and a backtest all learn through here (DESIGN.md, idea 1).
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from trainer.checkpoints import Checkpoints
from trainer.covariance import input_covariance
from trainer.evaluation import (
    DEPTH,
    Metrics,
    cold_and_known,
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
from trainer.group import ALONE, Group
from trainer.lora import LoraBackbone
from trainer.methods.base import Adapter, Method
from trainer.progress import Report, Said, silent
from trainer.resume import circumstances
from trainer.tiny import low_precision_pays

MOST_EPOCHS = 20
"""Passes over a window so small that more would only be learnt by heart; ADAPTIDE_UPDATE_EPOCHS can ask for more."""
DECIDES = {"lora_rank", "lora_alpha", "lora_dropout", "proximal_weight", "proximal_relative", "proximal_group_by"}
"""Settings beside those in FitConfig that training depends on."""
EVALUATIONS = 10
"""How often an update is validated, about: more would cost as much as the training itself."""


@dataclass(slots=True)
class Steps:
    """Duration and outcome of each step, in order, as the windows table keeps them."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    on_done: Callable[[], object] = lambda: None
    """Called after each step that succeeded, so that others can see how far the work has come."""
    around: Callable[[str], AbstractContextManager[object]] = field(default=lambda name: nullcontext())
    """Held for the length of each step, by its name: where it is traced."""

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """Time a step; put what came of it into the mapping."""
        row: dict[str, Any] = {"step": name}
        started = time.monotonic()
        self.rows.append(row)
        try:
            with self.around(name):
                yield row
        except BaseException:
            row["outcome"] = "failed"
            raise
        finally:
            row["seconds"] = round(time.monotonic() - started, 3)
        self.on_done()


@dataclass(frozen=True, slots=True, eq=False)
class Learnt:
    """candidate: None when no epoch beat the adapter in service on validation and the method goes on from it.

    ranks: per subject (candidate, incumbent, base, popularity) the test items' ranks, int64 [test cases].
    prequential: per subject but the candidate, metrics on next items of the window before it was trained on.
    gain: the incumbent against the bare base on those next items, NDCG@10 by user; None without such items.
    groups: of the test items, see cold_and_known.
    """

    candidate: Adapter | None
    fit: FitReport
    ranks: Mapping[str, NDArray[np.int64]]
    prequential: Mapping[str, Metrics]
    gain: Comparison | None
    groups: Mapping[str, Mapping[str, Metrics]] = field(default_factory=dict)

    def metrics(self, subject: str) -> Metrics:
        return metrics(self.ranks[subject])


Train = Callable[
    [Backbone, Adapter | None, Method, Examples, NDArray[np.int16], Settings, Report], tuple[Adapter | None, FitReport]
]
"""Called as `adapt` is."""


def learn(
    backbone: Backbone,
    incumbent: Adapter | None,
    method: Method,
    examples: Examples,
    prequential: Sequence[Case],
    index: CatalogueIndex,
    popularity: Float64,
    settings: Settings,
    steps: Steps,
    report: Report = silent,
    train: Train | None = None,
) -> Learnt:
    """Adapt `incumbent` (None: the bare base) to a window and score it beside what it would replace.

    backbone: the unmerged base; it is the same afterwards. popularity: float64 [rows], as of before the window.
    train: how the window is adapted to; None: by `adapt`, here.
    """
    test = sample_cases(examples.test, settings.evaluation_users, settings.seed)
    subjects: dict[str, Adapter | None] = {"base": None}
    if incumbent is not None:
        subjects["incumbent"] = incumbent
    cases = [*test, *prequential]
    with steps.step("evaluate_before") as row:
        ranks = {"popularity": popularity_ranks(cases, index, popularity)}
        said = Said(report, "evaluate before")
        for done, (name, state) in enumerate(subjects.items()):
            said(done, len(subjects))
            model = served(backbone, state, settings.beams)
            ranks[name] = model_ranks(model, cases, index, popularity, on_batch=said.again)
        said(len(subjects), len(subjects))
        ranks.setdefault("incumbent", ranks["base"])
        row |= {"outcome": "scored", "test": len(test), "prequential": len(prequential)}
    before = {name: user_means(own[len(test) :], prequential) for name, own in ranks.items()}
    gain = None
    if prequential:
        served_now, bare = (user_ndcg(ranks[name][len(test) :], prequential) for name in ("incumbent", "base"))
        gain = compare(served_now, bare, confidence=settings.gate_confidence, seed=settings.seed)
    after = {name: own[: len(test)] for name, own in ranks.items()}

    with steps.step("fit") as row:
        candidate, fitted = (train or adapt)(backbone, incumbent, method, examples, index.codes, settings, report)
        row |= {"outcome": "adapted" if candidate is not None else "no_change", "best_epoch": fitted.best_epoch}
    if candidate is not None:
        with steps.step("evaluate_after") as row:
            said = Said(report, "evaluate after")
            said(0, 1)
            model = served(backbone, candidate, settings.beams)
            after["candidate"] = model_ranks(model, test, index, popularity, on_batch=said.again)
            said(1, 1)
            row["outcome"] = "scored"
    return Learnt(candidate, fitted, after, before, gain, cold_and_known(after, test, popularity))


def served(backbone: Backbone, adapter: Adapter | None, beams: int) -> TorchModel:
    """What the service would serve: the adapter merged into the base, or the bare base."""
    merged = backbone if adapter is None else merge_lora(backbone, dict(adapter.tensors), adapter.scale)
    return TorchModel(merged, "evaluation", None, least_beams=max(DEPTH, beams))


def adapt(
    backbone: Backbone,
    incumbent: Adapter | None,
    method: Method,
    examples: Examples,
    codes: NDArray[np.int16],
    settings: Settings,
    report: Report = silent,
    *,
    group: Group = ALONE,
    kept: Checkpoints | None = None,
) -> tuple[Adapter | None, FitReport]:
    """Train a LoRA on the backbone by `method` and take it off again; None when it is to stay as it was.

    The epoch with the lowest validation loss is kept, the starting point included. codes: int16 [rows, 4].
    group: who trains it together; all give the same arguments and get the same result. kept: see fit.
    """
    scale = incumbent.scale if incumbent else settings.lora_alpha / settings.lora_rank
    rank = method.rank(incumbent, settings.lora_rank)
    lora = LoraBackbone(backbone, rank=rank, alpha=scale * rank, dropout=settings.lora_dropout, seed=settings.seed)
    said = Said(report, "fit")

    def covariance() -> Mapping[str, Tensor]:
        return input_covariance(lora, examples.training, codes, group=group, on_batch=said.again)

    def validated() -> float:
        low = config.low_precision
        return -validation_loss(lora.backbone, validation, codes, low_precision=low, group=group, on_batch=said.again)

    try:
        stage = method.begin(lora, incumbent, covariance)
        if not stage.parameters:
            return None, FitReport()
        validation = sample_cases(examples.validation, settings.evaluation_users, settings.seed)
        config = update_fit_config(settings, len(examples.training), backbone.device)
        if kept is not None:
            before = (
                () if incumbent is None else (incumbent.tensors, incumbent.scale, incumbent.method, incumbent.state)
            )
            rules = method.name, settings.model_dump(mode="json", include=DECIDES)
            known = circumstances(examples.training, validation, codes, config, backbone.device, group)
            kept = kept.keyed(*rules, before, known)
        fitted = fit(
            lora.backbone,
            stage.parameters,
            lambda random: examples.training,
            codes,
            config,
            evaluate=validated,
            penalty=stage.penalty,
            penalty_weight=stage.weight,
            relative=stage.relative,
            on_step=said,
            group=group,
            kept=kept,
        )
        if stage.continues and not fitted.best_epoch:
            return None, fitted
        return Adapter(lora.tensors(), scale, method.name, stage.finish()), fitted
    finally:
        lora.unwrap()


def update_fit_config(settings: Settings, sequences: int, device: torch.device) -> FitConfig:
    """How a window of so many training sequences is trained."""
    steps = max(1, math.ceil(sequences / settings.update_batch_size))
    more = min(MOST_EPOCHS, math.ceil(settings.update_min_steps / steps))
    epochs = max(settings.update_epochs, more)
    return FitConfig(
        epochs=epochs,
        evaluate_every=max(1, epochs // EVALUATIONS),
        batch_size=settings.update_batch_size,
        learning_rate=settings.learning_rate_update,
        weight_decay=settings.weight_decay,
        warmup=0.05,
        embedding_dropout=settings.embedding_dropout,
        residual_dropout=settings.residual_dropout,
        low_precision=low_precision_pays(device),
        seed=settings.seed,
    )
