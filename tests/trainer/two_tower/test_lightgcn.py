"""The training loop validates when it says, keeps the best tables and ends when nothing gets better."""

from collections.abc import Callable

import numpy as np
import torch

from tests.trainer.two_tower.worlds import CPU, quiet
from trainer.two_tower import LearnReport, Positives
from trainer.two_tower.graph import Graph
from trainer.two_tower.lightgcn import LightGcnConfig, Tables, train_block


def run(validate: Callable[[Tables], float], config: LightGcnConfig) -> tuple[Tables, Tables, LearnReport]:
    """10 pairs of 5 users and 6 items; the tables before, the tables kept, the report."""
    graph = Graph.of(Positives(np.arange(10) % 5, np.arange(10) % 6), 5, 6, CPU)
    generator = torch.Generator().manual_seed(0)
    start = Tables(torch.randn(5, 4, generator=generator), torch.randn(6, 4, generator=generator))
    kept, report = train_block(
        start, graph, torch.arange(6), config, validate=validate, generator=generator, report=quiet
    )
    return start, kept, report


def test_validations_are_at_least_so_many_steps_apart() -> None:
    asked: list[Tables] = []
    config = LightGcnConfig(batch_size=4, steps_between=7, epochs=10)  # 3 steps an epoch: every third epoch
    run(lambda tables: (asked.append(tables), 0.0)[1], config)
    assert len(asked) == 1 + 3 + 1  # before, after 3, 6, 9 and at the end


def test_the_best_tables_are_kept_and_training_ends_after_patience() -> None:
    scores = iter([0.1, 0.2, 0.5, 0.4, 0.4, 0.3, 0.9])
    seen: list[Tables] = []

    def validate(tables: Tables) -> float:
        seen.append(tables)
        return next(scores)

    config = LightGcnConfig(steps_between=1, patience=3)
    _, kept, report = run(validate, config)
    assert (report.epochs, report.best_epoch) == (5, 2)
    graph = Graph.of(Positives(np.arange(10) % 5, np.arange(10) % 6), 5, 6, CPU)
    torch.testing.assert_close(graph.propagate(kept.user, kept.item, config.layers)[0], seen[2].user)


def test_the_start_is_kept_when_training_only_does_harm() -> None:
    scores = iter([0.9, *[0.1] * 50])
    start, kept, report = run(lambda tables: next(scores), LightGcnConfig(steps_between=1, patience=2))
    assert report.best_epoch == 0
    assert torch.equal(kept.user, start.user)


def test_between_equal_scores_the_training_loss_decides() -> None:
    _, _, report = run(lambda tables: 0.0, LightGcnConfig(steps_between=1, epochs=40, learning_rate=0.02))
    assert report.losses[report.best_epoch - 1] == min(report.losses)


def test_the_tables_that_training_starts_from_are_left_alone() -> None:
    start, kept, _ = run(lambda tables: 0.0, LightGcnConfig(epochs=3))
    again, _, _ = run(lambda tables: 0.0, LightGcnConfig(epochs=1))
    assert torch.equal(start.item, again.item)
    assert not torch.equal(start.item, kept.item)
