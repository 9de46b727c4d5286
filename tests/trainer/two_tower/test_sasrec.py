"""SASRec sees what came before a place and nothing else, and is trained on targets only."""

import numpy as np
import pytest
import torch

from tests.trainer.two_tower.worlds import CPU, quiet
from trainer.examples import Case, Examples, TrainingSequence, UserStream, build_examples
from trainer.two_tower import training_positives
from trainer.two_tower.sasrec import SasRec, SasRecConfig, SasRecRanker

ITEMS = 30


def model(length: int = 6) -> SasRec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SasRec(ITEMS, length, SasRecConfig()).eval()


def test_no_place_sees_what_comes_after_it() -> None:
    rows = torch.tensor([[3, 1, 4, 1, 5, 9]])
    changed = torch.tensor([[3, 1, 4, 2, 6, 5]])
    own, other = model()(rows), model()(changed)
    torch.testing.assert_close(own[:, :3], other[:, :3])
    assert not torch.allclose(own[:, 3], other[:, 3])


def definition(ranker: SasRecRanker, known: set[int], sequences: list[TrainingSequence]) -> float:
    """Mean cross-entropy of each target after each history of its own, one at a time."""
    state = ranker.state()
    own = model(length=6)
    own.load_state_dict({name: tensor for name, tensor in state.items() if name != "known"})
    losses = []
    rows_known = sorted(known)
    for sequence in sequences:
        for place in range(max(1, sequence.first_target), len(sequence.rows)):
            history = sequence.rows[:place]
            padded = np.zeros((1, 6), dtype=np.int64)
            padded[0, :place] = history
            after = own(torch.from_numpy(padded))[0, place - 1].double()
            scores = state["item"].double()[rows_known] @ after
            losses.append(-torch.log_softmax(scores, 0)[rows_known.index(int(sequence.rows[place]))].item())
    return float(np.mean(losses))


def test_the_loss_is_the_full_softmax_over_known_items_at_the_targets_only() -> None:
    sequences = [
        TrainingSequence(np.array([1, 2, 3, 4]), 0),
        TrainingSequence(np.array([7, 8, 9, 1, 2, 3, 12]), 5),
        TrainingSequence(np.array([5, 6]), 1),
        TrainingSequence(np.array([11]), 0),  # nothing before it: no target
    ]
    config = SasRecConfig(epochs=1, dropout=0.0, learning_rate=0.0, batch_size=8)
    ranker = SasRecRanker(ITEMS, 6, 0, CPU, config)
    report = ranker.learn(0, training_positives([], ["u"], min_events=1), Examples(tuple(sequences), (), ()), quiet)
    known = {row for sequence in sequences[:3] for row in sequence.rows.tolist()}
    assert report.losses[0] == pytest.approx(definition(ranker, known, sequences[:3]), rel=1e-5)


def test_order_is_learnt() -> None:
    """Everyone walks round the same ring of items from a start of their own: the next item is certain."""
    streams = [UserStream(f"u{u}", np.zeros(0, dtype=np.int64), (u + np.arange(8)) % ITEMS) for u in range(ITEMS)]
    examples = build_examples(streams, history_items=6, min_events=3)
    positives = training_positives(streams, [s.user_id for s in streams], min_events=3)
    ranker = SasRecRanker(ITEMS, 6, 0, CPU, SasRecConfig(batch_size=8, learning_rate=3e-3, epochs=40))
    ranker.learn(0, positives, examples, quiet)
    assert (ranker.ranks(examples.test) == 1).mean() > 0.9


def test_a_case_without_a_history_ranks_by_row() -> None:
    none = np.zeros(0, dtype=np.int64)
    ranker = SasRecRanker(ITEMS, 6, 0, CPU)
    history = np.arange(3)
    ranks = ranker.ranks([Case("u", none, 4, none), Case("v", history, 4, history)])
    assert ranks.tolist() == [5, 2]


def test_only_the_last_items_of_a_long_history_count() -> None:
    ranker = SasRecRanker(ITEMS, 6, 0, CPU, SasRecConfig(epochs=1))
    sequence = TrainingSequence(np.arange(7), 1)
    ranker.learn(0, training_positives([], ["u"], min_events=1), Examples((sequence,) * 4, (), ()), quiet)
    recent = np.array([1, 2, 3, 4, 5, 6])
    nothing = np.zeros(0, dtype=np.int64)
    cases = [Case("u", history, 3, nothing) for history in (recent, np.concatenate([[0, 0, 5], recent]))]
    assert len(set(ranker.ranks(cases, depth=ITEMS).tolist())) == 1
