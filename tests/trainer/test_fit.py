"""The training loop on a tiny real Llama: its loss is the referee's, it learns, and the proximal holds it back."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from service.generation.backbone import Backbone
from service.generation.reference import score_items
from service.settings import GroupBy
from tests.models import tiny_backbone
from trainer.examples import TrainingSequence
from trainer.fit import FitConfig, FitReport, batches, fit, sequence_loss
from trainer.lora import LoraBackbone
from trainer.methods.base import Adapter, Method
from trainer.methods.proximal import peso
from trainer.methods.single_evolving import SingleEvolving
from trainer.optimiser import schedule
from trainer.proximal import Quadratic, SoftmaxKL

CODES = np.random.default_rng(0).integers(0, 256, size=(12, 4)).astype(np.int16)


def sequence(rows: Sequence[int], first_target: int = 0) -> TrainingSequence:
    return TrainingSequence(np.array(rows, dtype=np.int64), first_target)


USERS = (sequence([0, 1, 2, 3, 4]), sequence([5, 6, 7]), sequence([8, 2, 9, 10], 1), sequence([11, 0]))


def loss_of(backbone: Backbone, batch: Sequence[TrainingSequence], codes: np.ndarray = CODES) -> float:
    return sequence_loss(backbone, batch, codes, 0.0)[0].item()


def config(**changes: float) -> FitConfig:
    return FitConfig(**{"epochs": 3, "batch_size": 2, "learning_rate": 1e-3, "weight_decay": 0.0} | changes)  # type: ignore[arg-type]


def rising() -> Callable[[], float]:
    """Every epoch better than the one before."""
    return iter(range(1_000)).__next__


def adapted(
    method: Method, *, evaluate: Callable[[], float] | None = None, dropout: float = 0.0, **changes: float
) -> tuple[LoraBackbone, dict[str, Tensor], FitReport]:
    """A window's update from a previous adapter with both factors away from zero: (after, before, report)."""
    lora = LoraBackbone(tiny_backbone(), rank=4, alpha=8, dropout=dropout, seed=0)
    random = torch.Generator().manual_seed(1)
    previous = {name: 0.1 * torch.randn(t.shape, generator=random) for name, t in lora.tensors().items()}
    torch.seed()  # whatever was drawn before must not matter
    stage = method.begin(lora, Adapter(previous, lora.scale, method.name), unasked)
    report = fit(
        lora.backbone,
        stage.parameters,
        lambda _: USERS,
        CODES,
        config(**changes),
        penalty=stage.penalty,
        penalty_weight=stage.weight,
        relative=stage.relative,
        evaluate=evaluate or rising(),
    )
    return lora, previous, report


def unasked() -> Mapping[str, Tensor]:
    raise AssertionError("an evolving method needs no covariance")


# The loss


def test_the_loss_is_minus_the_referees_mean_score_of_the_targets() -> None:
    backbone = tiny_backbone()
    scores = [
        score_items(backbone, CODES[user.rows[:place]], CODES[user.rows[place : place + 1]])[0]
        for user in USERS
        for place in range(user.first_target, len(user.rows))
    ]

    loss, targets = sequence_loss(backbone, USERS, CODES, 0.0)

    assert targets == len(scores) == 13
    assert loss.item() == pytest.approx(-np.mean(scores), abs=1e-4)


def test_what_lies_before_the_first_target_is_history_only() -> None:
    backbone = tiny_backbone()
    whole, tail = sequence([1, 2, 3, 4]), sequence([1, 2, 3, 4], 3)

    loss, targets = sequence_loss(backbone, [tail], CODES, 0.0)

    assert targets == 1
    assert loss.item() == pytest.approx(-score_items(backbone, CODES[[1, 2, 3]], CODES[[4]])[0], abs=1e-4)
    assert loss.item() != pytest.approx(loss_of(backbone, [whole]), abs=1e-2)


def test_padding_changes_nothing() -> None:
    backbone = tiny_backbone()
    short, long = sequence([1, 2]), sequence(list(range(12)))

    together = loss_of(backbone, [short, long])

    assert together == pytest.approx((2 * loss_of(backbone, [short]) + 12 * loss_of(backbone, [long])) / 14, abs=1e-4)


def test_an_untied_model_is_scored_through_its_head() -> None:
    backbone = tiny_backbone(tied=False)
    expected = -score_items(backbone, CODES[[3]], CODES[[7]])[0]

    assert loss_of(backbone, [sequence([3, 7], 1)]) == pytest.approx(expected, abs=1e-4)


def test_embedding_dropout_acts_in_training_only() -> None:
    backbone = tiny_backbone()
    plain = loss_of(backbone, USERS)

    assert sequence_loss(backbone, USERS, CODES, 0.5)[0].item() == plain
    backbone.model.train()
    assert sequence_loss(backbone, USERS, CODES, 0.5)[0].item() != plain


def test_residual_dropout_acts_in_training_only_and_leaves_no_trace() -> None:
    backbone = tiny_backbone()
    plain = loss_of(backbone, USERS)

    assert sequence_loss(backbone, USERS, CODES, 0.0, 0.5)[0].item() == plain
    backbone.model.train()
    assert sequence_loss(backbone, USERS, CODES, 0.0, 0.5)[0].item() != plain
    assert loss_of(backbone, USERS) == plain


# Its parts


def test_the_rate_rises_linearly_then_falls_as_a_cosine() -> None:
    factors = [schedule(step, 12, 1 / 6) for step in range(12)]

    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[7] == pytest.approx(0.5)  # half of the ten steps after warm-up
    assert all(later < earlier for earlier, later in pairwise(factors[2:]))
    assert schedule(12, 12, 1 / 6) == pytest.approx(0)
    assert schedule(0, 1, 0.01) == 1


def test_batches_hold_each_sequence_once_and_keep_like_lengths_together() -> None:
    sequences = [sequence([i] * length) for i, length in enumerate([5, 1, 3, 5, 1, 3, 5])]

    found = list(batches(sequences, 2, np.random.default_rng(0)))

    assert sorted(int(s.rows[0]) for batch in found for s in batch) == list(range(7))
    assert sorted(sorted(len(s.rows) for s in batch) for batch in found) == [[1, 1], [3, 3], [5], [5, 5]]
    orders = {
        tuple(int(s.rows[0]) for b in batches(sequences, 2, np.random.default_rng(i)) for s in b) for i in range(9)
    }
    assert len(orders) > 1


# Learning


def test_a_handful_of_users_is_learnt_by_heart() -> None:
    backbone = tiny_backbone()
    parameters = list(backbone.model.parameters())
    for parameter in parameters:
        parameter.requires_grad_()

    report = fit(
        backbone,
        parameters,
        lambda _: USERS,
        CODES,
        config(epochs=60, learning_rate=3e-3),
        evaluate=lambda: -loss_of(backbone, USERS),
    )

    assert report.losses[-1] < report.losses[0] / 5
    for user in USERS:
        for place in range(1, len(user.rows)):
            scores = score_items(backbone, CODES[user.rows[:place]], CODES)
            assert scores.argmax() == user.rows[place]


def test_an_adapter_alone_learns_a_handful_of_users_and_the_base_stays_as_it_was() -> None:
    lora, _, report = adapted(SingleEvolving(), epochs=60, learning_rate=2e-2)

    assert report.losses[-1] < report.losses[0] / 2
    hits = [
        score_items(lora.backbone, CODES[user.rows[:place]], CODES).argmax() == user.rows[place]
        for user in USERS
        for place in range(1, len(user.rows))
    ]
    assert np.mean(hits) > 0.8
    assert loss_of(lora.unwrap(), USERS) == loss_of(tiny_backbone(), USERS)


def test_the_reported_loss_is_the_mean_over_the_targets_of_an_epoch() -> None:
    _, _, report = adapted(SingleEvolving(), epochs=1, learning_rate=0.0, batch_size=3)

    lora, _, _ = adapted(SingleEvolving(), epochs=0)
    assert report.losses == [pytest.approx(loss_of(lora.backbone, USERS), abs=1e-4)]


def test_the_starting_point_is_kept_when_every_epoch_is_worse() -> None:
    lora, previous, report = adapted(SingleEvolving(), evaluate=iter([1.0, 0.9, 0.5, 0.8]).__next__)

    assert report.best_epoch == 0
    assert report.scores == [(0, 1.0), (1, 0.9), (2, 0.5), (3, 0.8)]
    for name, tensor in lora.tensors().items():
        assert torch.equal(tensor, previous[name])


def test_an_epoch_that_is_only_as_good_does_not_replace_the_start() -> None:
    lora, previous, report = adapted(SingleEvolving(), evaluate=lambda: 1.0)

    assert report.best_epoch == 0
    assert all(torch.equal(tensor, previous[name]) for name, tensor in lora.tensors().items())


def test_the_best_epoch_is_what_is_left_in_the_parameters() -> None:
    seen: list[dict[str, Tensor]] = []
    lora = LoraBackbone(tiny_backbone(), rank=4, alpha=8, dropout=0, seed=0)
    scores = iter([0.0, 1.0, 3.0, 2.0])

    def evaluate() -> float:
        seen.append(lora.tensors())
        return next(scores)

    report = fit(lora.backbone, list(lora.parameters.values()), lambda _: USERS, CODES, config(), evaluate=evaluate)

    assert report.best_epoch == 2
    for name, tensor in lora.tensors().items():
        assert torch.equal(tensor, seen[2][name])
    assert not all(torch.equal(seen[3][name], tensor) for name, tensor in seen[2].items())


def test_training_stops_when_patience_runs_out() -> None:
    _, _, report = adapted(SingleEvolving(), evaluate=iter([0.0, 1.0, 0.5, 0.5, 9.0]).__next__, epochs=10, patience=2)

    assert [epoch for epoch, _ in report.scores] == [0, 1, 2, 3]
    assert report.best_epoch == 1


def test_only_every_nth_epoch_and_the_last_are_evaluated() -> None:
    _, _, report = adapted(SingleEvolving(), epochs=5, evaluate_every=2)

    assert [epoch for epoch, _ in report.scores] == [0, 2, 4, 5]
    assert len(report.losses) == 5


def test_the_model_is_asked_and_left_without_dropout() -> None:
    lora = LoraBackbone(tiny_backbone(), rank=4, alpha=8, dropout=0.5, seed=0)
    modes: list[bool] = []

    def evaluate() -> float:
        modes.append(lora.backbone.model.training)
        return float(len(modes))

    fit(lora.backbone, list(lora.parameters.values()), lambda _: USERS, CODES, config(), evaluate=evaluate)

    assert modes == [False] * 4
    assert not lora.backbone.model.training


def test_progress_reaches_its_end_once_for_each_step() -> None:
    lora = LoraBackbone(tiny_backbone(), rank=4, alpha=8, dropout=0, seed=0)
    told: list[tuple[int, int]] = []

    fit(
        lora.backbone,
        list(lora.parameters.values()),
        lambda _: USERS,
        CODES,
        config(batch_size=3),
        evaluate=rising(),
        on_step=lambda done, total: told.append((done, total)),
    )

    assert told == [(1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (6, 6), (6, 6)]


def test_a_window_without_training_sequences_changes_nothing() -> None:
    lora = LoraBackbone(tiny_backbone(), rank=4, alpha=8, dropout=0, seed=0)
    before = lora.tensors()

    report = fit(lora.backbone, list(lora.parameters.values()), lambda _: (), CODES, config(), evaluate=lambda: 0.0)

    assert all(math.isnan(loss) for loss in report.losses)
    assert all(torch.equal(tensor, before[name]) for name, tensor in lora.tensors().items())


def test_one_seed_gives_one_result_bit_for_bit_dropout_included() -> None:
    def run(seed: int) -> tuple[dict[str, Tensor], list[float]]:
        changes = {"seed": seed, "embedding_dropout": 0.2, "residual_dropout": 0.1}
        lora, _, report = adapted(SingleEvolving(), dropout=0.1, **changes)
        return lora.tensors(), report.losses

    (first, losses), (second, again), (other, _) = run(3), run(3), run(4)

    assert losses == again
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


# The proximal


def test_peso_without_weight_is_single_evolving_bit_for_bit() -> None:
    free, _, plain = adapted(SingleEvolving(), dropout=0.1, embedding_dropout=0.1)
    held, _, report = adapted(peso(0.0), dropout=0.1, embedding_dropout=0.1)

    assert report.losses == plain.losses
    assert report.gradient_ratio == [0, 0, 0]
    assert all(torch.equal(t, free.tensors()[name]) for name, t in held.tensors().items())


@pytest.mark.parametrize("group_by", GroupBy)
def test_the_heavier_the_proximal_the_nearer_the_adapter_stays_and_a_huge_one_stops_it(group_by: GroupBy) -> None:
    moved = []
    for weight in (0.0, 1e3, 1e5, 1e8):
        lora, previous, _ = adapted(peso(weight, group_by), epochs=15)
        moved.append(SoftmaxKL(previous, group_by)(lora.tensors()).item())

    assert moved == sorted(moved, reverse=True)
    assert moved[0] > 1e-5
    assert moved[-1] < 1e-3 * moved[0]


def test_the_first_window_is_held_at_the_fresh_adapter() -> None:
    def distance(weight: float) -> float:
        lora = LoraBackbone(tiny_backbone(), rank=4, alpha=8, dropout=0, seed=0)
        fresh, stage = lora.tensors(), peso(weight).begin(lora, None, unasked)
        fit(
            lora.backbone,
            stage.parameters,
            lambda _: USERS,
            CODES,
            config(epochs=15),
            penalty=stage.penalty,
            penalty_weight=stage.weight,
            evaluate=rising(),
        )
        return Quadratic(fresh, GroupBy.TENSOR, weighted=True)(lora.tensors()).item()

    assert distance(1e8) < 1e-3 * distance(0.0)


def test_the_gradient_ratio_is_that_of_the_two_gradients() -> None:
    """One step over all users, with a penalty whose gradient is the parameters themselves."""
    lora = LoraBackbone(tiny_backbone(), rank=4, alpha=8, dropout=0, seed=0)
    parameters = list(lora.parameters.values())
    start = [p.detach().clone() for p in parameters]
    loss, _ = sequence_loss(lora.backbone, USERS, CODES, 0.0)
    data = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).norm().item()
    own = torch.cat([p.flatten() for p in start]).norm().item()

    report = fit(
        lora.backbone,
        parameters,
        lambda _: USERS,
        CODES,
        config(epochs=1, batch_size=4),
        penalty=lambda: torch.stack([p.square().sum() for p in parameters]).sum() / 2,
        penalty_weight=0.3,
        evaluate=rising(),
    )

    assert report.gradient_ratio == [pytest.approx(0.3 * own / data, rel=1e-4)]
    assert report.penalties == [pytest.approx(own**2 / 2, rel=1e-4)]


def test_the_step_taken_is_that_of_the_summed_gradient() -> None:
    """The same window with the penalty apart, and with it written into what is trained: a quadratic by hand."""
    lora = LoraBackbone(tiny_backbone(), rank=4, alpha=8, dropout=0, seed=0)
    parameters = list(lora.parameters.values())
    start = [p.detach().clone() for p in parameters]
    loss, _ = sequence_loss(lora.backbone, USERS, CODES, 0.0)
    penalty = torch.stack([p.square().sum() for p in parameters]).sum() / 2
    gradients = torch.autograd.grad(loss + 5.0 * penalty, parameters)

    fit(
        lora.backbone,
        parameters,
        lambda _: USERS,
        CODES,
        config(epochs=1, batch_size=4, learning_rate=1e-3),
        penalty=lambda: torch.stack([p.square().sum() for p in parameters]).sum() / 2,
        penalty_weight=5.0,
        evaluate=rising(),
    )

    # AdamW's first step is the rate times the gradient's sign.
    for parameter, before, gradient in zip(parameters, start, gradients, strict=True):
        clear = gradient.abs() > 1e-3
        step = (before - parameter.detach())[clear]
        torch.testing.assert_close(step, 1e-3 * gradient[clear].sign(), rtol=1e-2, atol=1e-6)
