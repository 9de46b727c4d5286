"""The methods that evolve one adapter: what holds them to its previous state, and what does not."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from service.settings import GroupBy
from tests.models import tiny_backbone
from tests.trainer.methods.windows import CODES, chain, change, modules_of, same, settings, train, window
from trainer.fit import FitConfig, fit, sequence_loss
from trainer.learn import adapt
from trainer.lora import LoraBackbone
from trainer.methods import make_method, proximal
from trainer.methods.proximal import Proximal

REGULARISED = ("peso", "rank-kl", "l2", "orthogonal", "output-kl")
HOLDING = ("peso", "rank-kl", "l2", "output-kl")  # orthogonality asks for other directions, not for the same ones
every_regulariser = pytest.mark.parametrize("name", REGULARISED)


@every_regulariser
def test_without_weight_it_is_single_evolving_bit_for_bit(name: str) -> None:
    incumbent = chain("single-evolving")[0].adapter

    found = train(name, 2, incumbent, proximal_weight=0.0)

    assert same(found.adapter.tensors, chain("single-evolving")[1].adapter.tensors)
    assert found.adapter.state == {}


@pytest.mark.parametrize("name", HOLDING)
def test_a_huge_weight_leaves_the_adapter_where_it_was(name: str) -> None:
    """As close as pretrain: in what it computes, since a uniform shift of a softmax's group costs nothing."""
    incumbent = chain("single-evolving")[0].adapter

    def distance(weight: float) -> float:
        found = train(name, 2, incumbent, proximal_weight=weight, update_epochs=8, learning_rate_update=2e-3)
        moved = [
            change(found.adapter.tensors, module, 2.0) - change(incumbent.tensors, module, 2.0)
            for module in modules_of(incumbent.tensors)
        ]
        return float(torch.cat([m.flatten() for m in moved]).norm())

    assert distance(1e8) < 0.2 * distance(0.0)


@every_regulariser
@pytest.mark.parametrize("has_incumbent", [True, False])
def test_every_regulariser_starts_at_the_incumbent_or_at_a_fresh_adapter(name: str, has_incumbent: bool) -> None:
    incumbent = chain("single-evolving")[0].adapter if has_incumbent else None
    lora = LoraBackbone(tiny_backbone(), rank=3, alpha=6, dropout=0.0, seed=0)
    fresh = lora.tensors()

    stage = make_method(settings(method=name)).begin(lora, incumbent, dict)

    assert same(lora.tensors(), incumbent.tensors if incumbent else fresh)
    assert len(stage.parameters) == len(fresh)
    assert stage.continues


@pytest.mark.parametrize(
    ("make", "ratio"),
    [(proximal.peso, 0.1), (proximal.rank_kl, 0.03), (proximal.l2, 0.5), (proximal.orthogonal, 0.1)],
)
def test_a_relative_weight_is_the_share_of_the_first_steps_gradient(
    make: Callable[..., Proximal], ratio: float
) -> None:
    """Of the reported weight times the term where Adam's first step leads, over that of the loss where it began."""
    rate, incumbent, sequences = 1e-3, chain("single-evolving")[0].adapter, window(2).training
    lora = LoraBackbone(tiny_backbone(), rank=3, alpha=6, dropout=0.0, seed=0)
    stage = make(ratio, relative=True).begin(lora, incumbent, dict)
    assert stage.penalty is not None
    loss, _ = sequence_loss(lora.backbone, sequences, CODES, 0.0)
    data = torch.autograd.grad(loss, stage.parameters)

    report = fit(
        lora.backbone,
        stage.parameters,
        lambda random: sequences,
        CODES,
        FitConfig(1, len(sequences), rate, 0.0),
        evaluate=iter(range(9)).__next__,
        penalty=stage.penalty,
        penalty_weight=stage.weight,
        relative=stage.relative,
    )

    lora.load({name: incumbent.tensors[name] - rate * g.sign() for name, g in zip(lora.parameters, data, strict=True)})
    own = torch.autograd.grad(stage.penalty(), stage.parameters)
    assert report.penalty_weight * norm(own) / norm(data) == pytest.approx(ratio, rel=1e-2)


def norm(gradients: Sequence[Tensor]) -> float:
    return torch.cat([gradient.flatten() for gradient in gradients]).norm().item()


def test_the_weight_that_a_relative_one_became_is_reported() -> None:
    incumbent = chain("single-evolving")[0].adapter
    chosen = settings(method="peso", proximal_weight=0.1, proximal_relative=True)

    _, report = adapt(tiny_backbone(), incumbent, make_method(chosen), window(2), CODES, chosen)

    assert report.penalty_weight > 10  # the trap of METHODS.md: an absolute 0.1 would do nothing
    assert all(0.01 < ratio < 1 for ratio in report.gradient_ratio)


def test_peso_takes_the_groups_that_it_is_given() -> None:
    incumbent = chain("single-evolving")[0].adapter
    by_tensor = train("peso", 2, incumbent, proximal_weight=1e5, proximal_group_by=GroupBy.TENSOR)
    by_rank = train("peso", 2, incumbent, proximal_weight=1e5, proximal_group_by=GroupBy.RANK)

    assert not same(by_tensor.adapter.tensors, by_rank.adapter.tensors)
    assert same(by_rank.adapter.tensors, train("rank-kl", 2, incumbent, proximal_weight=1e5).adapter.tensors)


# Pretrain


@pytest.mark.parametrize("has_incumbent", [True, False])
def test_pretrain_never_changes_anything(has_incumbent: bool) -> None:
    incumbent = chain("single-evolving")[0].adapter if has_incumbent else None
    chosen = settings(method="pretrain")

    found, report = adapt(tiny_backbone(), incumbent, make_method(chosen), window(2), CODES, chosen)

    assert found is None
    assert (report.losses, report.best_epoch) == ([], 0)


# From one family to the other


def test_what_a_cumulative_method_left_can_be_evolved() -> None:
    stacked = chain("sum-lora-all")[1].adapter

    found = train("single-evolving", 3, stacked)

    assert found.adapter.rank == stacked.rank == 6
    assert same(dict(found.started), dict(stacked.tensors))
    assert found.adapter.state == {}
