"""The one training loop: base, update and backtest all run it. Read it top to bottom."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.generation.backbone import Backbone
from service.kit.crash_points import CrashPoint, crash_point
from trainer.captured import CapturedCall, CapturedPasses, add_up
from trainer.checkpoints import Checkpoints
from trainer.decoder import place, summed_loss
from trainer.examples import TrainingSequence
from trainer.execution import Execution, agreed, executing, plan
from trainer.group import ALONE, Group
from trainer.layout import AS_IT_IS, Size, lay_out, targets_of
from trainer.optimiser import make_optimiser, schedule, set_rate
from trainer.proximal import first_step_weight
from trainer.resume import captured, restored

RANKS_APART = 1_000_003
"""Between the seeds of the ranks, so that seeds that follow each other share none."""


@dataclass(frozen=True, slots=True)
class FitConfig:
    """AdamW with cosine decay. Rates are peaks, `warmup` is a share of all steps, `patience` counts evaluations."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup: float = 0.01
    embedding_dropout: float = 0.0
    residual_dropout: float = 0.0
    patience: int = 1_000_000
    evaluate_every: int = 1
    clip_norm: float = 1.0
    low_precision: bool = False
    seed: int = 0


@dataclass(slots=True)
class FitReport:
    """losses: mean cross-entropy per epoch, nats per item (4 codes). scores: (epoch, validation score), epoch 0 first.

    gradient_ratio: per epoch, mean over steps of lambda ||g_prox|| / ||g_ce|| (0 without a proximal). penalty_weight:
    lambda in force.
    """

    losses: list[float] = field(default_factory=list)
    scores: list[tuple[int, float]] = field(default_factory=list)
    best_epoch: int = 0
    penalties: list[float] = field(default_factory=list)
    gradient_ratio: list[float] = field(default_factory=list)
    penalty_weight: float = 0.0
    trainable_parameters: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Readings:
    """What the steps of the pass under way came to; tensors wait on the device until they are read.

    losses: of each step this rank's share. targets: of each step's whole batch.
    """

    losses: list[Any] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    penalties: list[Any] = field(default_factory=list)
    ratios: list[Any] = field(default_factory=list)

    def read(self, group: Group) -> "Readings":
        """As numbers, the losses of whole batches; once a pass, since each reading waits for the device. Collective."""
        losses, penalties, ratios = (list(map(float, own)) for own in (self.losses, self.penalties, self.ratios))
        return Readings(group.sums(losses), list(self.targets), penalties, ratios)

    def of(self, group: Group) -> "Readings":
        """What `read` gave, such that reading again gives it again."""
        return self if group.rank == 0 else replace(self, losses=[0.0] * len(self.losses))


Penalty = Callable[[], Tensor]
Progress = Callable[[int, int], None]  # (steps done, steps in all)


def fit(
    backbone: Backbone,
    parameters: Sequence[nn.Parameter],
    epoch_sequences: Callable[[np.random.Generator], Sequence[TrainingSequence]],
    codes: NDArray[np.int16],
    config: FitConfig,
    *,
    evaluate: Callable[[], float],
    penalty: Penalty | None = None,
    penalty_weight: float = 0.0,
    relative: bool = False,
    on_step: Progress = lambda done, total: None,
    group: Group = ALONE,
    kept: Checkpoints | None = None,
) -> FitReport:
    """Train `parameters` in place and leave them at their best by `evaluate`, the starting point included.

    codes: int16 [catalogue rows, 4]. epoch_sequences: the sequences of one pass. evaluate: higher is better; it is
    asked in eval mode, on every rank, and rank 0's answer counts.
    penalty: the proximal, computed in float32; its gradient is taken apart so that its share can be reported.
    relative: penalty_weight is the proximal's share of the first step's gradient (trainer.proximal.first_step_weight).
    group: who trains this together; all give the same arguments. kept: where to go on from, and to keep what is done.
    """
    torch.manual_seed(config.seed + RANKS_APART * group.rank)  # dropout of other sequences is drawn anew
    random = np.random.default_rng(config.seed)
    started = time.monotonic()
    group.make_equal(parameters)
    first_pass = epoch_sequences(random)
    execution = plan(
        backbone,
        first_pass,
        math.ceil(config.batch_size / group.size),
        config.epochs,
        residual_dropout=config.residual_dropout,
        compiled=False if group.sharded else None,
        captured=False if group.size > 1 else None,
    )
    execution = agreed(execution, group)
    optimiser = make_optimiser(parameters, config.learning_rate, config.weight_decay, captured=execution.captured)
    steps_per_epoch = math.ceil(len(first_pass) / config.batch_size)
    total_steps = max(1, steps_per_epoch * config.epochs)
    backbone.model.train(False)
    report = FitReport(trainable_parameters=sum(p.numel() for p in parameters))
    readings = Readings()
    first_epoch, taken, step = 1, 0, 0
    weight = None if relative and penalty_weight > 0 else penalty_weight
    if kept is not None and (state := kept.load(group)) is not None:
        tensors, values = state
        best = restored(tensors, parameters, optimiser, group)
        report, readings = FitReport(**values["report"]), Readings(**values["readings"]).of(group)
        report.scores = [(epoch, score) for epoch, score in report.scores]  # JSON has lists only
        first_epoch, taken, step, weight = (values[name] for name in ("epoch", "taken", "step", "weight"))
        random.bit_generator.state = values["order"]
        started -= report.seconds
    else:
        report.scores.append((0, group.agree(evaluate())))
        best = [p.detach().clone() for p in parameters]
    pool = torch.cuda.graph_pool_handle() if execution.captured else None

    def conclude() -> tuple[Tensor, ...]:
        """What follows the gradients: the proximal's value and ratio, if there is one."""
        found = _add_penalty(penalty, weight, parameters) if penalty is not None and weight else ()
        group.clip(parameters, config.clip_norm)
        optimiser.step()
        if execution.captured:
            torch._foreach_zero_([p.grad for p in parameters if p.grad is not None])
        return found

    concluded = CapturedCall(conclude, pool) if execution.captured else conclude
    with executing(backbone, execution, config.residual_dropout) as residual_dropout:
        dropouts = config.embedding_dropout, residual_dropout
        passes = None
        if execution.captured:
            passes = CapturedPasses(backbone, parameters, dropouts, config.low_precision, pool)
        for epoch in range(first_epoch, config.epochs + 1):
            backbone.model.train()
            order = random.bit_generator.state
            for batch in islice(batches(epoch_sequences(random), config.batch_size, random), taken, None):
                set_rate(optimiser, config.learning_rate * schedule(step, total_steps, config.warmup))
                if passes is None:
                    optimiser.zero_grad(set_to_none=True)
                loss, targets = add_gradients(
                    backbone, batch, codes, execution, dropouts, config.low_precision, group, passes
                )
                group.add_up_gradients(parameters)
                if penalty is not None and weight is None:
                    weight = first_step_weight(penalty, parameters, config.learning_rate, penalty_weight)
                if found := concluded():
                    value, ratio = found
                    readings.penalties.append(value)
                    readings.ratios.append(ratio)
                readings.losses.append(loss)
                readings.targets.append(targets)
                step, taken = step + 1, taken + 1
                crash_point(CrashPoint.FITTING)
                on_step(min(step, total_steps), total_steps)
                if kept is not None and kept.due(group, step):
                    report.seconds = time.monotonic() - started
                    values = {"epoch": epoch, "taken": taken, "step": step, "weight": weight, "order": order}
                    values |= {"report": asdict(report), "readings": asdict(readings.read(group))}
                    kept.save(step, captured(parameters, optimiser, best, group), values, group)
            means = readings.read(group)
            report.losses.append(float(np.average(means.losses, weights=means.targets)) if means.losses else math.nan)
            report.penalties.append(float(np.mean(means.penalties)) if means.penalties else 0.0)
            report.gradient_ratio.append(float(np.mean(means.ratios)) if means.ratios else 0.0)
            readings, taken = Readings(), 0
            if epoch % config.evaluate_every and epoch != config.epochs:
                continue
            backbone.model.train(False)
            report.scores.append((epoch, group.agree(evaluate())))
            if report.scores[-1][1] > max(score for _, score in report.scores[:-1]):
                report.best_epoch = epoch
                best = [p.detach().clone() for p in parameters]
            elif epoch - report.best_epoch >= config.patience * config.evaluate_every:
                break
    with torch.no_grad():
        for parameter, own in zip(parameters, best, strict=True):
            parameter.copy_(own)
    backbone.model.train(False)
    on_step(total_steps, total_steps)
    report.penalty_weight = weight or 0.0
    report.seconds = time.monotonic() - started
    return report


def batches(
    sequences: Sequence[TrainingSequence], size: int, random: np.random.Generator
) -> Iterator[list[TrainingSequence]]:
    """Shuffled batches of sequences of like length, so that little is padding."""
    order = random.permutation(len(sequences))
    order = order[np.argsort([len(sequences[i].rows) for i in order], kind="stable")]
    starts = np.arange(0, len(order), size)
    random.shuffle(starts)
    for start in starts:
        yield [sequences[i] for i in order[start : start + size]]


def add_gradients(
    backbone: Backbone,
    batch: Sequence[TrainingSequence],
    codes: NDArray[np.int16],
    execution: Execution,
    dropouts: tuple[float, float],
    low_precision: bool,
    group: Group = ALONE,
    passes: CapturedPasses | None = None,
) -> tuple[Tensor, int]:
    """Add the gradients of a batch's mean loss to .grad, part after part; returns that loss, detached, and its targets.

    dropouts: on embedded tokens and on the residual stream. group: each rank adds what its own share of the batch
    gives, and returns that share of the loss; over the ranks they sum up to the whole. passes: what computes them
    instead, with dropouts and precision of its own.
    """
    total = sum(map(targets_of, batch))
    losses = []
    for part, size, counts in group.parts(batch, lambda own: execution.parts(backbone, own)):
        if passes is not None and size.targets:
            losses.append(passes.add_gradients(lay_out(backbone.prompt, part, codes, size), 1 / max(total, 1)))
            continue
        with torch.autocast(backbone.device.type, torch.bfloat16, enabled=low_precision):
            loss, targets = sequence_loss(backbone, part, codes, *dropouts, size=size)
        if targets != total or not counts:
            loss = loss * (targets / max(total, 1) if counts else 0.0)
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        losses.append(loss.detach())
    return sum(losses[1:], losses[0]), total


def sequence_loss(
    backbone: Backbone,
    batch: Sequence[TrainingSequence],
    codes: NDArray[np.int16],
    embedding_dropout: float = 0.0,
    residual_dropout: float = 0.0,
    *,
    size: Size = AS_IT_IS,
) -> tuple[Tensor, int]:
    """Mean over target items of the sum over 4 levels of cross-entropy over that level's 256 codes; how many targets.

    All targets of a sequence are predicted in one pass (trainer.layout).
    The dropouts act in training mode: on embedded tokens, and on what attention and MLP add to the residual stream.
    """
    placed = place(lay_out(backbone.prompt, batch, codes, size), backbone.device)
    count = sum(map(targets_of, batch))
    return summed_loss(backbone, placed, embedding_dropout, residual_dropout) / max(count, 1), count


def _add_penalty(penalty: Penalty, weight: float, parameters: Sequence[nn.Parameter]) -> tuple[Tensor, Tensor]:
    """Add the proximal's gradient to the loss's; returns the penalty (without weight) and ||g_prox|| / ||g_ce||."""
    value = penalty()
    gradients = torch.autograd.grad(weight * value, parameters, allow_unused=True)
    data_norm = nn.utils.get_total_norm([p.grad.float() for p in parameters if p.grad is not None])
    own_norm = nn.utils.get_total_norm([g.float() for g in gradients if g is not None])
    add_up(parameters, gradients)
    return value.detach(), own_norm / data_norm
