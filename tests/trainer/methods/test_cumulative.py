"""What every cumulative method promises: one plain LoRA that serves what was trained, and a state to go on from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from service.adapters.lora import MAX_RANK
from service.errors import ConfigurationError
from service.generation.backbone import Backbone, merge_lora
from tests.models import tiny_backbone
from tests.trainer.methods.windows import (
    CODES,
    CUMULATIVE,
    RANK,
    WINDOWS,
    chain,
    change,
    modules_of,
    own_tensors,
    same,
    scores,
    settings,
    train,
    window,
    written_and_read,
)
from trainer.learn import adapt
from trainer.lora import LoraTensors, save_adapter
from trainer.methods import make_method
from trainer.methods.base import Adapter

every_method = pytest.mark.parametrize("name", CUMULATIVE)


@every_method
def test_what_is_served_scores_as_what_was_trained(name: str) -> None:
    for trained in chain(name):
        merged = merge_lora(tiny_backbone(), dict(trained.adapter.tensors), trained.adapter.scale)

        np.testing.assert_allclose(scores(merged), trained.scores, atol=1e-4)


@every_method
def test_what_peft_loads_scores_as_what_was_trained(name: str, tmp_path: Path) -> None:
    trained = chain(name)[-1]
    save_adapter(tmp_path, trained.adapter.tensors, scale=trained.adapter.scale)

    loaded = PeftModel.from_pretrained(tiny_backbone().model, tmp_path, local_files_only=True)
    loaded.train(False)

    np.testing.assert_allclose(scores(Backbone(loaded.get_base_model())), trained.scores, atol=1e-4)
    assert np.abs(trained.scores - scores(tiny_backbone())).max() > 0.1


@every_method
def test_the_exported_rank_is_that_of_all_adapters_it_holds(name: str) -> None:
    held = (1, 2, 3) if "-all" in name else (1, 2, 2)

    assert [trained.adapter.rank for trained in chain(name)] == [RANK * count for count in held]


@every_method
def test_the_state_holds_the_past_adapters_that_the_next_window_needs(name: str) -> None:
    held = (1, 2, 3) if "-all" in name else (1, 1, 1)

    for trained, count in zip(chain(name), held, strict=True):
        numbers = {key.split("/")[0] for key in trained.adapter.state if key.startswith("adapter.")}
        assert numbers == {f"adapter.{number:04d}" for number in range(count)}


@every_method
def test_a_past_adapter_stays_as_its_own_window_left_it(name: str) -> None:
    first, *later = chain(name)
    if "-all" in name:
        for trained in later:
            kept = {key.split("/", 1)[1]: t for key, t in trained.adapter.state.items() if "adapter.0000/" in key}
            assert same(kept, own_tensors(first.adapter))


@every_method
def test_a_window_starts_from_the_last_adapters_b_when_it_inherits_and_from_zero_otherwise(name: str) -> None:
    first, second, _ = chain(name)
    before = own_tensors(first.adapter)

    for key, start in second.started.items():
        if ".lora_B." in key:
            assert torch.equal(start, before[key] if "inherit" in name else torch.zeros_like(start))
        elif "inf-lora" not in name:
            assert torch.equal(start, before[key]) is ("inherit" in name)


@every_method
def test_every_windows_own_b_was_trained(name: str) -> None:
    for trained in chain(name):
        own = own_tensors(trained.adapter)
        assert all(not torch.equal(own[key], start) for key, start in trained.started.items() if ".lora_B." in key)


@every_method
def test_a_state_survives_its_file_bit_for_bit(name: str, tmp_path: Path) -> None:
    adapter = chain(name)[1].adapter

    read = written_and_read(adapter, tmp_path)

    assert same(read.state, adapter.state)
    assert same(read.tensors, adapter.tensors)
    assert all(tensor.dtype == torch.float32 for tensor in read.state.values())


@every_method
def test_a_window_that_starts_from_saved_files_ends_bit_for_bit_like_one_that_went_on(
    name: str, tmp_path: Path
) -> None:
    resumed = written_and_read(chain(name)[1].adapter, tmp_path)

    again = train(name, WINDOWS, resumed).adapter

    assert same(again.tensors, chain(name)[-1].adapter.tensors)
    assert same(again.state, chain(name)[-1].adapter.state)


@every_method
def test_learning_gives_the_adapter_that_was_trained(name: str) -> None:
    chosen = settings(method=name)
    found: Adapter | None = None
    for number in range(1, WINDOWS + 1):
        found, _ = adapt(tiny_backbone(), found, make_method(chosen), window(number), CODES, chosen)
    assert found is not None

    assert same(found.tensors, chain(name)[-1].adapter.tensors)
    assert same(found.state, chain(name)[-1].adapter.state)
    assert found.method == name


@every_method
def test_an_adapter_of_another_method_counts_as_one_past_adapter_as_it_is_served(name: str) -> None:
    before = chain("sum-lora-all" if name != "sum-lora-all" else "inf-lora-all")[1].adapter

    found = train(name, WINDOWS, before)

    # The past of rank 2r and an own one of the same rank.
    assert found.adapter.rank == 4 * RANK
    if "inherit" in name:
        assert all(torch.equal(t, before.tensors[key]) for key, t in found.started.items() if ".lora_B." in key)


@every_method
def test_an_adapter_that_changes_nothing_is_no_past_one(name: str) -> None:
    """As the first adapter of a base is that D_1 was trained into whole: A kaiming, B 0. A backtest has none there."""
    fresh = fresh_adapter(chain("single-evolving")[0].started)

    found = train(name, 1, fresh)

    assert same(found.adapter.tensors, chain(name)[0].adapter.tensors)
    assert same(found.adapter.state, chain(name)[0].adapter.state)
    assert make_method(settings(method=name)).rank(fresh, 99) == RANK  # its own, as of one that evolves


@every_method
def test_a_first_window_that_brings_nothing_better_leaves_an_adapter_that_changes_nothing(name: str) -> None:
    fresh, chosen = fresh_adapter(chain("single-evolving")[0].started), settings(method=name, learning_rate_update=1e18)

    found, report = adapt(tiny_backbone(), fresh, make_method(chosen), window(1), CODES, chosen)

    assert (found, report.best_epoch) == (None, 0)


@pytest.mark.parametrize("family", ["sum-lora", "sd-lora", "inf-lora"])
def test_a_first_window_is_the_same_whatever_the_scope_and_the_start(family: str) -> None:
    """There is no past to hold or to inherit from."""
    first, *others = (chain(name)[0].adapter for name in CUMULATIVE if name.startswith(family))

    assert all(same(first.tensors, other.tensors) and same(first.state, other.state) for other in others)


@pytest.mark.parametrize("name", [name for name in CUMULATIVE if "-all" in name])
def test_a_rank_beyond_what_engines_take_is_refused_and_says_what_to_choose(name: str) -> None:
    many = {f"adapter.{number:04d}/m.lora_A.weight": torch.zeros(MAX_RANK // 4, 2) for number in range(4)}
    incumbent = Adapter({"m.lora_A.weight": torch.zeros(MAX_RANK, 2)}, 2.0, name, many)

    with pytest.raises(ConfigurationError, match="evolves a single adapter"):
        make_method(settings(method=name)).rank(incumbent, RANK)
    assert make_method(settings(method="single-evolving")).rank(incumbent, RANK) == MAX_RANK


@pytest.mark.parametrize("name", ["sum-lora-all", "sum-lora-latest", "sd-lora-all", "sd-lora-latest"])
def test_a_fresh_a_is_another_one_in_each_window_and_the_same_when_learnt_again(name: str) -> None:
    windows = chain(name)
    again = train(name, 2, windows[0].adapter)

    for own in (own for own in windows[0].started if ".lora_A." in own):
        first, second, third = (window.started[own].flatten() for window in windows)
        for one, other in ((first, second), (second, third)):
            assert abs(torch.cosine_similarity(one, other, dim=0)) < 0.6
        torch.testing.assert_close(again.started[own].flatten(), second, rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in CUMULATIVE if "-latest" in name])
def test_the_latest_methods_never_outgrow_the_engines(name: str) -> None:
    incumbent = chain(name)[-1].adapter

    assert make_method(settings(method=name)).rank(incumbent, 99) == RANK


def test_a_state_is_a_copy_that_later_training_does_not_touch(tmp_path: Path) -> None:
    first = chain("sum-lora-all-inherit")[0].adapter
    written_and_read(first, tmp_path)

    train("sum-lora-all-inherit", 2, first)

    assert same(load_file(tmp_path / "state.safetensors"), first.state)


def test_changes_of_modules_add_up() -> None:
    """InfLoRA takes the past as it is, so what is served is the sum of what all windows learnt."""
    found = [trained.adapter for trained in chain("inf-lora-all")]
    last = found[-1]

    for module in modules_of(last.tensors):
        expected = sum(change(own_tensors(one), module, last.scale) for one in found)
        torch.testing.assert_close(change(last.tensors, module, last.scale), expected, atol=1e-6, rtol=1e-5)


def fresh_adapter(tensors: LoraTensors) -> Adapter:
    """With these As, and Bs of zeros."""
    return Adapter({n: t if ".lora_A." in n else torch.zeros_like(t) for n, t in tensors.items()}, 2.0, "fresh")
