"""Training pairs are the training targets of build_examples, user by user; ranks are those of a full sort."""

import numpy as np
import pytest
import torch

from service.errors import ConfigurationError, DatasetError
from trainer.examples import Case, UserStream, build_examples
from trainer.two_tower import NAMES, make_ranker, training_positives
from trainer.two_tower.ranks import target_ranks


def rows(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


STREAMS = [
    UserStream("ann", rows(9), rows(1, 2, 1, 3, 4)),  # 4 is the test, 3 the validation
    UserStream("bob", rows(), rows(5, 6)),  # too few
    UserStream("cid", rows(1, 2, 3), rows(1, 2, 3)),  # nothing new: all of it is trained on
    UserStream("eve", rows(), rows(8, 7, 6, 5)),
]
USERS = ("eve", "cid", "bob", "ann")


def test_training_pairs_leave_out_held_out_items_and_users_with_few_events() -> None:
    positives = training_positives(STREAMS, USERS, min_events=3)
    assert list(zip(positives.user.tolist(), positives.item.tolist(), strict=True)) == [
        *[(3, 1), (3, 2), (3, 1)],
        *[(1, 1), (1, 2), (1, 3)],
        *[(0, 8), (0, 7)],
    ]


def test_training_pairs_are_the_targets_of_the_examples_however_these_are_cut() -> None:
    random = np.random.default_rng(1)
    streams = [
        UserStream(f"u{u}", random.integers(0, 30, u % 4), random.integers(0, 30, random.integers(1, 40)))
        for u in range(30)
    ]
    examples = build_examples(streams, history_items=6, min_events=3)
    positives = training_positives(streams, [s.user_id for s in streams], min_events=3)
    targets = np.concatenate([s.rows[s.first_target :] for s in examples.training])
    assert positives.item.tolist() == targets.tolist()


def test_a_user_outside_the_data_is_refused() -> None:
    with pytest.raises(DatasetError, match="'ann' is not among the users"):
        training_positives(STREAMS, ("bob",), min_events=3)


def test_an_empty_block_has_no_pairs() -> None:
    positives = training_positives([], USERS, min_events=3)
    assert len(positives.user) == len(positives.item) == 0


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="lightgcn-pisa, sasrec"):
        make_ranker("lightgcn", users=USERS, items=10, history_items=5, seed=0, device="cpu")


@pytest.mark.parametrize("name", NAMES)
def test_every_name_makes_a_ranker_of_that_name(name: str) -> None:
    assert make_ranker(name, users=USERS, items=10, history_items=5, seed=0, device="cpu").name == name


def brute_force(scores: np.ndarray, known: np.ndarray, case: Case, depth: int) -> int:
    shown = [row for row in range(len(scores)) if row not in case.seen]
    order = sorted(shown, key=lambda row: (not known[row], -scores[row] if known[row] else 0.0, row))
    rank = order.index(case.target) + 1
    return rank if rank <= depth else 0


def test_ranks_are_those_of_a_full_sort_with_ties_by_row_without_seen_items() -> None:
    random = np.random.default_rng(2)
    items, count = 40, 200
    scores = random.integers(0, 6, (count, items)).astype(np.float32)
    known = random.random(items) < 0.8
    cases = []
    for i in range(count):
        order = random.permutation(items)
        seen = np.sort(order[1 : 1 + random.integers(0, 30)])
        cases.append(Case(f"u{i}", seen, int(order[0]), seen))
    table, mask = torch.from_numpy(scores), torch.from_numpy(known)
    found = target_ranks(lambda first, last: table[first:last], cases, mask, 10)
    assert found.tolist() == [brute_force(s, known, c, 10) for s, c in zip(scores, cases, strict=True)]
    assert len(set(found.tolist())) > 8


def test_scores_that_are_not_numbers_do_not_rank_first() -> None:
    case = Case("u", rows(0), 3, rows(0))
    scores = torch.tensor([[1.0, 0.5, float("nan"), float("nan"), -2.0]])
    known = torch.ones(5, dtype=torch.bool)
    assert target_ranks(lambda first, last: scores, [case], known, 10).tolist() == [4]


def test_no_cases_have_no_ranks() -> None:
    assert target_ranks(lambda first, last: torch.zeros(0, 3), [], torch.ones(3, dtype=torch.bool), 10).shape == (0,)
