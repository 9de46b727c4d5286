"""Every ranker in hand-made worlds: it learns tastes, follows a drift, goes on from a saved state."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from service.errors import ConfigurationError, DatasetError
from tests.trainer.two_tower.worlds import CPU, block_of, quiet, tastes
from trainer.evaluation import metrics
from trainer.examples import Case, Examples, UserStream, build_examples
from trainer.two_tower import NAMES, Positives, Ranker
from trainer.two_tower.lightgcn import LightGcnConfig
from trainer.two_tower.ranker import Continual, LightGcnRanker
from trainer.two_tower.sasrec import SasRecConfig, SasRecRanker

USERS = tuple(f"u{u:03}" for u in range(80))
ITEMS = 60
INCREMENTAL = [name for name in NAMES if name != "lightgcn-pretrain"]
HELD = ["lightgcn-contrastive", "lightgcn-piw"]  # pisa holds the steadiest fifth only


def ranker(name: str, seed: int = 0, epochs: int = 30) -> Ranker:
    if name == "sasrec":
        return SasRecRanker(ITEMS, 20, seed, CPU, SasRecConfig(epochs=epochs, batch_size=32, learning_rate=3e-3))
    # Small batches and a high rate, so that few epochs learn much.
    config = LightGcnConfig(epochs=epochs, batch_size=64, learning_rate=2e-2, steps_between=1, patience=10)
    return LightGcnRanker(Continual(name), USERS, ITEMS, seed, CPU, config)


def popularity_ndcg(positives: Positives, cases: Sequence[Case]) -> float:
    count = np.bincount(positives.item, minlength=ITEMS)
    ranks = []
    for case in cases:
        shown = [row for row in range(ITEMS) if row not in case.seen]
        order = sorted(shown, key=lambda row: (-count[row], row))
        ranks.append(order.index(case.target) + 1 if case.target in order[:10] else 0)
    return metrics(np.array(ranks)).ndcg_10


def first_block() -> tuple[Positives, Examples]:
    """Users 0..59, items 0..39 in 4 tastes of 10 items, of which a user takes 9: the rest are 1 item and 30 others."""
    return block_of(tastes(range(60), range(40), 4, 9, seed=1), USERS)


def drift() -> tuple[Positives, Examples]:
    """Users 20..79 on items 20..59: users and items that are new, and old users whose taste is another now."""
    return block_of(tastes(range(20, 80), range(20, 60), 4, 9, seed=2), USERS)


def ndcg(one: Ranker, examples: Examples) -> float:
    return metrics(one.ranks(examples.test)).ndcg_10


@pytest.mark.parametrize("name", ["lightgcn-finetune", "sasrec"])
def test_tastes_are_learnt_far_better_than_popularity(name: str) -> None:
    positives, examples = first_block()
    one = ranker(name)
    report = one.learn(0, positives, examples, quiet)
    assert ndcg(one, examples) > 3 * popularity_ndcg(positives, examples.test)
    assert ndcg(one, examples) > 0.35
    assert report.losses[-1] < report.losses[0]
    assert 0 < report.best_epoch <= report.epochs
    assert report.trainable_parameters >= ITEMS * 64


@pytest.mark.parametrize("name", INCREMENTAL)
def test_a_drift_is_followed_that_pretrain_does_not_follow(name: str) -> None:
    one, frozen = ranker(name), ranker("lightgcn-pretrain")
    for block, (positives, examples) in enumerate((first_block(), drift())):
        one.learn(block, positives, examples, quiet)
        frozen.learn(block, positives, examples, quiet)
    assert ndcg(one, drift()[1]) > 0.35
    assert ndcg(frozen, drift()[1]) < 0.2


def test_pretrain_stays_as_it_was_after_the_first_block() -> None:
    one = ranker("lightgcn-pretrain", epochs=3)
    one.learn(0, *first_block(), quiet)
    before = one.state()
    report = one.learn(1, *drift(), quiet)
    assert all(torch.equal(before[name], tensor) for name, tensor in one.state().items())
    assert (report.epochs, report.trainable_parameters) == (0, 0)


def test_up_to_the_first_block_all_lightgcn_methods_are_the_same() -> None:
    states = []
    for name in NAMES:
        if name != "sasrec":
            one = ranker(name, epochs=2)
            one.learn(0, *first_block(), quiet)
            states.append(one.state())
    assert all(torch.equal(states[0][key], other[key]) for other in states[1:] for key in other)


@pytest.mark.parametrize("name", HELD)
def test_a_contrastive_term_keeps_users_nearer_to_their_past(name: str) -> None:
    ends = []
    for own in (name, "lightgcn-finetune"):
        one = ranker(own)
        one.learn(0, *first_block(), quiet)
        before = one.state()["served_user"][20:60]
        one.learn(1, *drift(), quiet)
        ends.append(torch.cosine_similarity(before, one.state()["served_user"][20:60]).mean())
    assert ends[0] > ends[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_from_a_saved_state_ends_where_an_uninterrupted_one_does(name: str) -> None:
    whole = ranker(name, epochs=3)
    whole.learn(0, *first_block(), quiet)
    saved = whole.state()
    whole.learn(1, *drift(), quiet)
    resumed = ranker(name, epochs=3)
    resumed.load(saved)
    resumed.learn(1, *drift(), quiet)
    assert whole.state().keys() == resumed.state().keys()
    assert all(torch.equal(tensor, resumed.state()[key]) for key, tensor in whole.state().items())
    cases = drift()[1].test
    assert whole.ranks(cases).tolist() == resumed.ranks(cases).tolist()


@pytest.mark.parametrize("name", ["lightgcn-pisa", "sasrec"])
def test_the_seed_decides_and_torch_draws_on_as_if_nothing_had_been_trained(name: str) -> None:
    torch.manual_seed(5)
    undisturbed = torch.rand(3)
    torch.manual_seed(5)
    states = []
    for seed in (0, 0, 1):
        one = ranker(name, seed=seed, epochs=2)
        one.learn(0, *first_block(), quiet)
        one.learn(1, *drift(), quiet)
        states.append(one.state())
    assert torch.equal(torch.rand(3), undisturbed)
    key = "item"
    assert torch.equal(states[0][key], states[1][key])
    assert not torch.equal(states[0][key], states[2][key])


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_state_is_a_copy(name: str) -> None:
    one = ranker(name, epochs=1)
    one.learn(0, *first_block(), quiet)
    saved = one.state()
    kept = {key: tensor.clone() for key, tensor in saved.items()}
    one.learn(1, *drift(), quiet)
    assert all(torch.equal(saved[key], kept[key]) for key in kept)
    assert len({tensor.untyped_storage().data_ptr() for tensor in saved.values()}) == len(saved)


@pytest.mark.parametrize("name", ["lightgcn-finetune", "sasrec"])
def test_the_state_of_other_data_is_refused(name: str) -> None:
    other = (
        SasRecRanker(ITEMS + 1, 20, 0, CPU)
        if name == "sasrec"
        else LightGcnRanker(Continual(name), USERS, ITEMS + 1, 0, CPU)
    )
    with pytest.raises(ConfigurationError, match="does not fit"):
        ranker(name).load(other.state())


@pytest.mark.parametrize("name", NAMES)
def test_a_block_without_training_pairs_changes_nothing(name: str) -> None:
    one = ranker(name, epochs=2)
    one.learn(0, *first_block(), quiet)
    before = one.state()
    report = one.learn(1, Positives(*(np.zeros((2, 0), dtype=np.int64))), Examples((), (), ()), quiet)
    assert report.epochs == 0
    assert all(torch.equal(before[key], tensor) for key, tensor in one.state().items())


@pytest.mark.parametrize("name", INCREMENTAL)
def test_users_without_validation_cases_are_trained_on_all_the_same(name: str) -> None:
    stream = UserStream("u000", np.array([1, 2, 3]), np.array([1, 2, 3, 1]))
    examples = build_examples([stream], history_items=20, min_events=3)
    assert not examples.validation
    one = ranker(name, epochs=2)
    report = one.learn(0, *block_of([stream], USERS), quiet)
    assert report.epochs == 2
    assert report.best_epoch > 0


def test_an_unknown_user_is_refused_by_a_two_tower_ranker() -> None:
    with pytest.raises(DatasetError, match="'nobody'"):
        ranker("lightgcn-finetune").ranks([Case("nobody", np.array([1]), 2, np.array([1]))])


def test_items_and_users_that_a_block_lacks_keep_the_embedding_of_the_last_block_that_had_them() -> None:
    one = ranker("lightgcn-finetune", epochs=3)
    one.learn(0, *first_block(), quiet)
    before = one.state()
    one.learn(1, *drift(), quiet)
    after = one.state()
    assert torch.equal(before["served_item"][:20], after["served_item"][:20])
    assert torch.equal(before["served_user"][:20], after["served_user"][:20])
    assert not torch.equal(before["served_item"][20:40], after["served_item"][20:40])


@pytest.mark.parametrize("name", ["lightgcn-finetune", "sasrec"])
def test_an_item_that_was_never_trained_on_ranks_behind_all_that_were(name: str) -> None:
    one = ranker(name, epochs=3)
    one.learn(0, *first_block(), quiet)
    seen = np.arange(1)
    new, last = Case("u001", seen, 45, seen), Case("u001", seen, 40, seen)
    assert one.ranks([new, last], depth=100).tolist() == [39 + 6, 39 + 1]


@pytest.mark.parametrize("name", ["lightgcn-finetune", "sasrec"])
def test_progress_rises_to_its_end(name: str) -> None:
    steps: list[tuple[int, int]] = []
    report: Callable[[int, int], None] = lambda done, total: steps.append((done, total))  # noqa: E731  # one line says it
    ranker(name, epochs=4).learn(0, *first_block(), report)
    assert steps == sorted(steps)
    assert steps[-1] == (4, 4)
