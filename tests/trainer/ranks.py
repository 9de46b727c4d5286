"""What the processes of a test's group do: functions that a child process finds by their name."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from service.errors import ConfigurationError
from service.generation.backbone import Backbone
from tests.models import tiny_backbone
from tests.trainer.methods.windows import CODES, settings, window, wrapped
from trainer.checkpoints import Checkpoints
from trainer.covariance import input_covariance
from trainer.evaluation import validation_loss
from trainer.execution import AS_IT_COMES, Execution, executing
from trainer.fit import FitReport, add_gradients, fit
from trainer.group import ALONE, Group
from trainer.learn import update_fit_config
from trainer.methods import make_method
from trainer.methods.base import Adapter
from trainer.progress import Report
from trainer.sharding import is_sharded, shard, whole

EPOCHS = 5
Outcome = tuple[dict[str, Tensor], dict[str, Any]]  # float64 tensors, and the report
CASES: dict[str, dict[str, object]] = {
    "peso": {"method": "peso", "proximal_relative": True, "proximal_weight": 0.5},
    "sd-lora": {"method": "sd-lora-all"},
    "inf-lora": {"method": "inf-lora-all"},
}
FULL = "all weights"
PARTS = "parts that recompute their blocks"
RECOMPUTED = Execution(rows=3, lengths=(64,), tokens=64, checkpoint=True)
"""As for a GPU with little memory: a sequence a part, so that one rank of two has three and the other two."""


class Interrupted(Exception):
    """Stands for whatever ends a training between two steps."""


def backbone_in(group: Group) -> Backbone:
    """float64; its blocks spread over the ranks where the group says so."""
    backbone = tiny_backbone(seed=3)
    backbone.model.double()
    if group.sharded:
        shard(backbone, group)
    return backbone


def learnt(
    case: str,
    incumbent: Adapter | None,
    group: Group = ALONE,
    *,
    kept: Checkpoints | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    **changes: object,
) -> Outcome:
    """Window 2 learnt from `incumbent` in float64: 16 sequences in batches of 5, so that the last batch holds one."""
    torch.set_default_dtype(torch.float64)
    try:
        chosen = settings(update_batch_size=5, update_epochs=EPOCHS, **(CASES[case] | changes))
        method, examples, backbone = make_method(chosen), window(2), backbone_in(group)
        lora = wrapped(backbone, method, incumbent, chosen)
        stage = method.begin(lora, incumbent, lambda: input_covariance(lora, examples.training, CODES, group=group))
        report = fit(
            lora.backbone,
            stage.parameters,
            lambda random: examples.training,
            CODES,
            replace(update_fit_config(chosen, len(examples.training), backbone.device), low_precision=False),
            evaluate=lambda: -validation_loss(backbone, examples.validation, CODES, batch_size=4, group=group),
            penalty=stage.penalty,
            penalty_weight=stage.weight,
            relative=stage.relative,
            group=group,
            kept=kept,
            on_step=on_step,
        )
        trained = {name: p.detach().clone() for name, p in lora.compose().items()}
        return trained | {f"state {name}": t.double() for name, t in stage.finish().items()}, told(report)
    finally:
        torch.set_default_dtype(torch.float32)


def learnt_whole(group: Group = ALONE, *, kept: Checkpoints | None = None, **more: Any) -> Outcome:
    """All weights of the backbone trained on window 1, in float64."""
    examples, backbone = window(1), backbone_in(group)
    backbone.model.requires_grad_(True)
    config = update_fit_config(settings(update_batch_size=5, update_epochs=EPOCHS), 16, backbone.device)
    report = fit(
        backbone,
        list(backbone.model.parameters()),
        lambda random: examples.training,
        CODES,
        replace(config, learning_rate=2e-3, low_precision=False),
        evaluate=lambda: -validation_loss(backbone, examples.validation, CODES, batch_size=4, group=group),
        group=group,
        kept=kept,
        **more,
    )
    return {name: whole(p).clone() for name, p in backbone.model.named_parameters()}, told(report)


def in_parts(group: Group, execution: Execution) -> Outcome:
    """Loss and gradients of one batch of 5 sequences, as `execution` has it, in float64."""
    backbone = backbone_in(group)
    backbone.model.requires_grad_(True)
    named = dict(backbone.model.named_parameters())
    backbone.model.train()
    with executing(backbone, execution):
        batch = window(2).training[:5]
        loss, _ = add_gradients(backbone, batch, CODES, execution, (0.0, 0.0), low_precision=False, group=group)
    group.add_up_gradients(list(named.values()))
    gradients = {name: whole(p.grad) for name, p in named.items() if p.grad is not None}
    return gradients, {"loss": group.sums([loss.item()])}


def told(report: FitReport) -> dict[str, Any]:
    return {name: value for name, value in asdict(report).items() if name != "seconds"}


def outcomes(group: Group, incumbents: dict[str, Adapter]) -> dict[str, Outcome]:
    """Of each case, and of all weights."""
    found = {case: learnt(case, adapter, group) for case, adapter in incumbents.items()}
    return found | {FULL: learnt_whole(group), PARTS: in_parts(group, AS_IT_COMES)}


def plain_and_sharded(
    group: Group, report: Report, incumbents: dict[str, Adapter], folder: Path
) -> dict[str, dict[str, Any]]:
    """The outcomes of a group as it is and as one with sharded blocks, and what became of interrupted trainings."""
    plain, spread = replace(group, sharded=False), replace(group, sharded=True)
    assert any(is_sharded(p) for p in backbone_in(spread).model.parameters())
    found: dict[str, dict[str, Any]] = {"plain": outcomes(plain, incumbents), "sharded": outcomes(spread, incumbents)}
    found["sharded"][PARTS] = in_parts(spread, RECOMPUTED)
    dropping = {"embedding_dropout": 0.2, "residual_dropout": 0.1}
    found["interrupted"] = {
        "peso": resumed(
            lambda **more: learnt("peso", incumbents["peso"], plain, **dropping, **more), folder / "peso", plain
        ),
        FULL: resumed(lambda **more: learnt_whole(spread, **more), folder / "full", spread),
    }
    return found


def resumed(train: Callable[..., Outcome], folder: Path, group: Group) -> tuple[Outcome, Outcome, list[int]]:
    """A training in one go, the same one after two interruptions, and the steps that each attempt did."""
    in_one_go = train()
    kept, done, begun = Checkpoints(folder, "window 2", 0.0).keyed("it"), 0, list[int]()

    def interrupt(after: int) -> Callable[[int, int], None]:
        first: list[int] = []

        def on_step(step: int, total: int) -> None:
            if not first:
                first.append(step)
                begun.append(step)
            if step == after:
                raise Interrupted

        return on_step

    for stop in (7, 14):  # in the middle of a pass, and with the whole of one behind it
        try:
            train(kept=kept, on_step=interrupt(stop))
        except Interrupted:
            done += 1
    assert done == 2
    return in_one_go, train(kept=kept, on_step=interrupt(0)), begun


def only_plain(group: Group, report: Report, incumbents: dict[str, Adapter]) -> dict[str, Outcome]:
    return outcomes(group, incumbents)


def is_killed(group: Group, report: Report, victim: int) -> None:
    """One rank dies while the others wait for it."""
    report("fit", 1, 9)
    if group.rank == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    group.sums([1.0])


def is_stopped(group: Group, report: Report, victim: int) -> None:
    """One rank falls silent for ever."""
    report("fit", 1, 9)
    if group.rank == victim:
        os.kill(os.getpid(), signal.SIGSTOP)
    group.sums([1.0])


def is_refused(group: Group, report: Report, reason: str) -> None:
    raise ConfigurationError(reason)


def goes_on(group: Group, report: Report, folder: Path) -> None:
    """Says who it is and works for longer than any test waits."""
    (folder / f"rank-{group.rank}").write_text(str(os.getpid()))
    group.sums([1.0])
    for step in range(10_000):
        report("fit", step, 10_000)
        time.sleep(0.05)


def sums(group: Group, report: Report, values: Sequence[float]) -> list[float]:
    report("fit", 1, 1)
    return group.sums([value * (group.rank + 1) for value in values])


def takes_too_much(group: Group, report: Report, size: int) -> None:
    """Memory that no machine has."""
    torch.empty(size, dtype=torch.uint8)
