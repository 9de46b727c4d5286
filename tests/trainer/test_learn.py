"""One window learnt: what comes out, what is kept, and that the backbone is afterwards as it was before."""

import numpy as np
import pytest
import torch

from service.adapters.lora import MAX_RANK
from service.catalog.index import CatalogueIndex, IndexedItem
from service.errors import ConfigurationError
from service.generation.backbone import Backbone
from tests.models import tiny_backbone
from tests.trainer.methods.windows import CODES, ITEMS, RANK, chain, same, scores, settings, window
from trainer.examples import Examples
from trainer.learn import Learnt, Steps, adapt, learn, served, update_fit_config
from trainer.lora import LoraBackbone
from trainer.methods import NAMES, make_method
from trainer.methods.base import Adapter

every_method = pytest.mark.parametrize("name", NAMES)


def index() -> CatalogueIndex:
    items = (IndexedItem(f"i{row:02d}", "", (), True, tuple(own)) for row, own in enumerate(CODES.tolist()))
    return CatalogueIndex(tuple(items), 0, None)


def learnt(name: str, incumbent: Adapter | None, steps: Steps | None = None) -> Learnt:
    chosen = settings(method=name)
    return learn(
        tiny_backbone(),
        incumbent,
        make_method(chosen),
        window(2),
        (),
        index(),
        np.arange(ITEMS, dtype=np.float64),
        chosen,
        steps or Steps(),
    )


def weights(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in backbone.model.named_parameters()}


@every_method
@pytest.mark.parametrize("has_incumbent", [True, False])
def test_the_backbone_is_afterwards_as_it_was_before(name: str, has_incumbent: bool) -> None:
    backbone, chosen = tiny_backbone(), settings(method=name, update_epochs=1)
    before, modules = weights(backbone), [name for name, _ in backbone.model.named_modules()]
    incumbent = chain("single-evolving")[0].adapter if has_incumbent else None

    adapt(backbone, incumbent, make_method(chosen), window(2), CODES, chosen)

    assert same(weights(backbone), before)
    assert [name for name, _ in backbone.model.named_modules()] == modules
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert not backbone.model.training


@every_method
def test_a_window_that_was_learnt_fits_it_better_than_what_served_before(name: str) -> None:
    incumbent = chain("single-evolving")[0].adapter
    chosen = settings(method=name)

    found, report = adapt(tiny_backbone(), incumbent, make_method(chosen), window(2), CODES, chosen)

    if name == "pretrain":
        assert found is None
    else:
        assert found is not None
        assert report.best_epoch > 0
        assert (found.method, found.scale) == (name, incumbent.scale)
        assert all(t.dtype == torch.float32 and bool(t.isfinite().all()) for t in found.tensors.values())


@pytest.mark.parametrize("name", ["single-evolving", "peso", "inf-lora-all"])
def test_a_method_that_goes_on_from_what_serves_gives_nothing_when_no_epoch_is_better(name: str) -> None:
    incumbent, chosen = chain(name)[0].adapter, settings(method=name, learning_rate_update=1e18)

    found, report = adapt(tiny_backbone(), incumbent, make_method(chosen), window(2), CODES, chosen)

    assert (found, report.best_epoch) == (None, 0)


@pytest.mark.parametrize("name", ["sum-lora-all", "sd-lora-latest", "inf-lora-latest"])
def test_a_method_that_rearranges_the_past_has_a_candidate_even_when_no_epoch_is_better(name: str) -> None:
    """Its starting point is not what serves, so the gate has something to judge."""
    incumbents = chain(name)
    number = 2 if name == "inf-lora-latest" else 1
    incumbent, chosen = incumbents[number - 1].adapter, settings(method=name, learning_rate_update=1e18)

    found, report = adapt(tiny_backbone(), incumbent, make_method(chosen), window(number + 1), CODES, chosen)

    assert report.best_epoch == 0
    assert found is not None
    assert not same(found.tensors, incumbent.tensors)


def test_an_evolving_adapter_keeps_rank_and_scale_whatever_the_settings_say() -> None:
    incumbent = chain("single-evolving")[0].adapter
    chosen = settings(method="single-evolving", lora_rank=5, lora_alpha=40)

    found, _ = adapt(tiny_backbone(), incumbent, make_method(chosen), window(2), CODES, chosen)

    assert found is not None
    assert (found.rank, found.scale) == (RANK, 2.0)


def test_the_first_adapter_has_the_settings_rank_and_scale() -> None:
    chosen = settings(method="sum-lora-all", lora_rank=5, lora_alpha=40)

    found, _ = adapt(tiny_backbone(), None, make_method(chosen), window(1), CODES, chosen)

    assert found is not None
    assert (found.rank, found.scale) == (5, 8.0)


def test_a_refusal_leaves_no_lora_on_the_backbone() -> None:
    backbone, chosen = tiny_backbone(), settings(method="sum-lora-all")
    lora = LoraBackbone(tiny_backbone(), rank=MAX_RANK, alpha=2 * MAX_RANK, dropout=0.0, seed=0)
    widest = Adapter({name: torch.ones_like(t) for name, t in lora.tensors().items()}, 2.0, "single-evolving")
    before = scores(backbone)

    with pytest.raises(ConfigurationError, match="engines take"):
        adapt(backbone, widest, make_method(chosen), window(1), CODES, chosen)

    np.testing.assert_array_equal(scores(backbone), before)
    assert not any("base" in name.split(".") for name, _ in backbone.model.named_modules())


def test_what_is_scored_is_what_would_be_served() -> None:
    trained = chain("sd-lora-all")[1]

    model = served(tiny_backbone(), trained.adapter, 10)

    np.testing.assert_allclose(scores(model.backbone), trained.scores, atol=1e-4)
    np.testing.assert_array_equal(scores(served(tiny_backbone(), None, 10).backbone), scores(tiny_backbone()))


@pytest.mark.parametrize("name", ["single-evolving", "sum-lora-all", "pretrain"])
def test_every_subject_is_ranked_on_the_same_test_items(name: str) -> None:
    found = learnt(name, chain("single-evolving")[0].adapter)

    subjects = {"base", "incumbent", "popularity"} | ({"candidate"} if name != "pretrain" else set())
    assert found.ranks.keys() == subjects
    assert {len(ranks) for ranks in found.ranks.values()} == {len(window(2).test)}
    assert found.metrics("base").users == len(window(2).test)


def test_without_an_incumbent_the_base_is_what_serves() -> None:
    found = learnt("single-evolving", None)

    np.testing.assert_array_equal(found.ranks["incumbent"], found.ranks["base"])


def test_pretrain_ends_its_fit_step_with_no_change() -> None:
    steps = Steps()

    assert learnt("pretrain", None, steps).candidate is None
    assert [(row["step"], row["outcome"]) for row in steps.rows] == [
        ("evaluate_before", "scored"),
        ("fit", "no_change"),
    ]


def test_a_window_of_one_user_can_be_learnt() -> None:
    """One sequence, one validation case: nothing divides by a spread that is not there."""
    whole, chosen = window(1), settings(method="inf-lora-all")
    one = Examples(whole.training[:1], whole.validation[:1], whole.test[:1])

    found, _ = adapt(tiny_backbone(), None, make_method(chosen), one, CODES, chosen)

    assert found is None or all(bool(t.isfinite().all()) for t in found.state.values())


def test_a_small_window_is_passed_over_more_often_but_not_without_end() -> None:
    def passes(sequences: int, **changes: object) -> int:
        chosen = settings(update_epochs=4, update_min_steps=600, update_batch_size=8, **changes)
        return update_fit_config(chosen, sequences, torch.device("cpu")).epochs

    assert passes(8 * 150) == passes(8 * 1_000) == 4  # 600 steps and more in four passes
    assert passes(8 * 149) == 5
    assert passes(8 * 60) == 10
    assert passes(8) == passes(0) == 20


def test_an_update_is_validated_about_ten_times_and_at_its_end() -> None:
    def every(epochs: int) -> int:
        chosen = settings(update_epochs=epochs, update_min_steps=0)
        return update_fit_config(chosen, 100, torch.device("cpu")).evaluate_every

    assert [every(epochs) for epochs in (1, 4, 19, 20, 50)] == [1, 1, 1, 2, 5]
