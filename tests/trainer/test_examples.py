"""Leave-one-out over one window, checked with a pencil."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.examples import (
    Case,
    Examples,
    TrainingSequence,
    UserStream,
    build_examples,
    first_occurrences,
    latest_of_each,
    pieces,
    prequential_cases,
    sample_cases,
    target_cap,
)


def stream(window: list[int], earlier: list[int] | None = None, user: str = "u") -> UserStream:
    return UserStream(user, np.array(earlier or [], dtype=np.int64), np.array(window, dtype=np.int64))


def build(*streams: UserStream, history_items: int = 20, min_events: int = 1, piece: int | None = None) -> Examples:
    return build_examples(streams, history_items=history_items, min_events=min_events, piece=piece)


def plain(sequences: tuple[TrainingSequence, ...] | list[TrainingSequence]) -> list[tuple[list[int], list[int]]]:
    """(history only, targets) of each sequence."""
    return [(s.rows[: s.first_target].tolist(), s.rows[s.first_target :].tolist()) for s in sequences]


def asked(cases: tuple[Case, ...]) -> list[tuple[list[int], int, list[int]]]:
    """(history, target, seen) of each case."""
    return [(c.history.tolist(), c.target, c.seen.tolist()) for c in cases]


def test_the_last_item_is_the_test_the_second_last_the_validation_the_rest_are_targets() -> None:
    examples = build(stream([5, 3, 8, 1, 9]))

    assert plain(examples.training) == [([], [5, 3, 8])]
    assert asked(examples.validation) == [([5, 3, 8], 1, [3, 5, 8])]
    assert asked(examples.test) == [([5, 3, 8, 1], 9, [1, 3, 5, 8])]
    assert examples.targets == 3


def test_earlier_windows_are_history_and_never_targets() -> None:
    examples = build(stream([5, 3, 8], earlier=[7, 6]))

    assert plain(examples.training) == [([7, 6], [5])]
    assert asked(examples.validation) == [([7, 6, 5], 3, [5, 6, 7])]
    assert asked(examples.test) == [([7, 6, 5, 3], 8, [3, 5, 6, 7])]


def test_a_case_says_how_much_the_user_had_done_before_the_window() -> None:
    examples = build(stream([5, 3, 8], earlier=[7, 6, 7], user="known"), stream([1, 2, 3], user="new"))
    assert {case.user_id: case.earlier for case in examples.test} == {"known": 3, "new": 0}
    later = prequential_cases([stream([5, 3], earlier=[7])], history_items=5, per_user=2, users=9, seed=0)
    assert [case.earlier for case in later] == [1, 1]


def test_a_user_with_too_few_events_in_the_window_is_left_out_whatever_came_before() -> None:
    examples = build(stream([1, 2], earlier=[3, 4, 5, 6], user="few"), stream([1, 2, 3], user="enough"), min_events=3)

    assert [c.user_id for c in (*examples.validation, *examples.test)] == ["enough", "enough"]
    assert plain(examples.training) == [([], [1])]


def test_an_item_that_the_user_already_knows_is_never_validation_or_test() -> None:
    # 2 is known from before, the second 4 from the window: the test is 5, the validation 4.
    examples = build(stream([4, 2, 5, 4, 2], earlier=[1, 2]))

    assert asked(examples.validation) == [([1, 2], 4, [1, 2])]
    assert asked(examples.test) == [([1, 2, 4, 2], 5, [1, 2, 4])]
    assert plain(examples.training) == []


def test_nothing_from_the_validation_item_on_is_trained_not_even_repeats() -> None:
    examples = build(stream([1, 2, 1, 3, 2, 4, 1]))

    assert plain(examples.training) == [([], [1, 2, 1])]
    assert asked(examples.validation) == [([1, 2, 1], 3, [1, 2])]
    assert asked(examples.test) == [([1, 2, 1, 3, 2], 4, [1, 2, 3])]


def test_one_new_item_is_the_test_and_only_repeats_are_all_trained() -> None:
    one_new, none_new = stream([1, 1, 9, 1], earlier=[1], user="one"), stream([1, 2, 1], earlier=[2, 1], user="none")

    examples = build(one_new, none_new)

    assert asked(examples.validation) == []
    assert [(c.user_id, c.target) for c in examples.test] == [("one", 9)]
    assert plain(examples.training) == [([1], [1, 1]), ([2, 1], [1, 2, 1])]


def test_a_case_has_the_latest_items_as_history_and_everything_before_it_as_seen() -> None:
    examples = build(stream([4, 5, 6, 7], earlier=[1, 2, 3]), history_items=2)

    assert asked(examples.validation) == [([4, 5], 6, [1, 2, 3, 4, 5])]
    assert asked(examples.test) == [([5, 6], 7, [1, 2, 3, 4, 5, 6])]


def test_a_long_user_is_cut_so_that_the_last_target_of_a_piece_sees_a_full_history_and_no_more() -> None:
    rows = np.arange(10)

    assert plain(list(pieces(rows, 3, history_items=2, piece=3))) == [
        ([2], [3, 4, 5]),
        ([5], [6, 7, 8]),
        ([8], [9]),
    ]
    assert plain(list(pieces(rows, 4, history_items=4, piece=2))) == [
        ([1, 2, 3], [4, 5]),
        ([3, 4, 5], [6, 7]),
        ([5, 6, 7], [8, 9]),
    ]
    assert plain(list(pieces(rows[:4], 1, history_items=5, piece=1))) == [([0], [1]), ([0, 1], [2]), ([0, 1, 2], [3])]
    assert list(pieces(rows, 10, history_items=2, piece=3)) == []


def test_a_piece_holds_half_as_many_targets_as_the_history_has_items_unless_told_otherwise() -> None:
    long = stream(list(range(12)))

    assert [len(targets) for _, targets in plain(build(long, history_items=4).training)] == [2, 2, 2, 2, 2]
    assert [len(targets) for _, targets in plain(build(long, history_items=4, piece=7).training)] == [7, 3]


def test_a_window_without_events_gives_nothing() -> None:
    assert build().targets == len(build().validation) == len(build().test) == 0
    assert build(stream([], earlier=[1, 2]), min_events=0).targets == 0


def test_first_occurrences_are_in_time_order() -> None:
    assert first_occurrences(np.array([7, 7, 2, 7, 9, 2])) == [0, 2, 4]
    assert first_occurrences(np.empty(0, dtype=np.int64)) == []


def test_a_sample_is_seeded_keeps_the_order_and_takes_all_when_there_are_few() -> None:
    cases = build(*(stream([1, 2, 3], user=f"u{i:02}") for i in range(30))).test

    chosen = sample_cases(cases, 5, seed=1)

    users = [c.user_id for c in chosen]
    assert len(set(users)) == 5
    assert users == sorted(users)
    assert [c.user_id for c in sample_cases(cases, 5, seed=1)] == users
    assert [c.user_id for c in sample_cases(cases, 5, seed=2)] != users
    assert sample_cases(cases, 30, seed=1) == list(cases)


histories = st.lists(st.integers(0, 12), max_size=25)


@given(earlier=histories, window=histories, history_items=st.integers(1, 8), piece=st.integers(1, 9))
def test_every_item_before_the_validation_item_is_a_target_exactly_once(
    earlier: list[int], window: list[int], history_items: int, piece: int
) -> None:
    examples = build(stream(window, earlier), history_items=history_items, piece=piece)

    rows = earlier + window
    new = [i for i in range(len(earlier), len(rows)) if rows[i] not in rows[:i]]
    end = new[-2] if len(new) > 1 else new[-1] if new else len(rows)
    assert [t for _, targets in plain(examples.training) for t in targets] == rows[len(earlier) : end]
    place = len(earlier)
    for history, targets in plain(examples.training):
        assert history == rows[max(0, place - max(1, history_items + 1 - piece)) : place]
        assert 1 <= len(targets) <= piece
        place += len(targets)


@given(earlier=histories, window=histories, history_items=st.integers(1, 8))
def test_a_case_never_asks_for_what_the_service_would_exclude(
    earlier: list[int], window: list[int], history_items: int
) -> None:
    examples = build(stream(window, earlier), history_items=history_items)

    new = [row for i, row in enumerate(window) if row not in earlier + window[:i]]
    assert [c.target for c in (*examples.validation, *examples.test)] == new[-2:]
    for case in (*examples.validation, *examples.test):
        before = (earlier + window)[: len(earlier) + window.index(case.target)]
        assert case.seen.tolist() == sorted(set(before))
        assert case.target not in case.seen
        assert case.history.tolist() == before[-history_items:]


@pytest.mark.parametrize("min_events", [4, 5])
def test_the_least_number_of_events_counts_the_window_only(min_events: int) -> None:
    examples = build(stream([1, 2, 3, 4], earlier=[9]), min_events=min_events)

    assert len(examples.test) == (1 if min_events == 4 else 0)


# The cap: what one user may do to the training


def test_a_user_above_the_cap_keeps_the_latest_targets_and_the_rest_is_history() -> None:
    many, few = stream([1, 2, 3, 4, 5, 6, 7, 8], user="many"), stream([11, 12, 13, 14], user="few")

    examples = build_examples([many, few], history_items=20, min_events=1, user_targets=3)

    assert plain(examples.training) == [([1, 2, 3], [4, 5, 6]), ([], [11, 12])]
    assert [(c.user_id, c.target) for c in examples.test] == [("many", 8), ("few", 14)]
    assert (examples.targets, examples.capped_users, examples.capped_targets) == (5, 1, 3)


def test_what_a_user_repeats_is_trained_on_so_often_the_latest_times_and_held_out_all_the_same() -> None:
    again = stream([7, 1, 7, 2, 7, 3, 7, 4, 7, 5], earlier=[7, 7, 7])

    examples = build_examples([again], history_items=20, min_events=1, repeats=2)

    assert plain(examples.training) == [([7, 7, 7], [1, 2, 7, 3, 7])]
    assert asked(examples.validation) == [([7, 7, 7, 7, 1, 7, 2, 7, 3, 7], 4, [1, 2, 3, 7])]
    assert asked(examples.test) == [([7, 7, 7, 7, 1, 7, 2, 7, 3, 7, 4, 7], 5, [1, 2, 3, 4, 7])]
    assert (examples.capped_users, examples.capped_targets) == (1, 2)


@given(rows=st.lists(st.integers(0, 5), max_size=30), most=st.integers(1, 6))
def test_the_latest_of_each_keep_their_order(rows: list[int], most: int) -> None:
    left = latest_of_each(np.array(rows, dtype=np.int64), most).tolist()

    assert Counter(left) == {row: min(count, most) for row, count in Counter(rows).items()}
    assert left == [row for place, row in enumerate(rows) if rows[place:].count(row) <= most]


def test_no_user_is_more_than_the_share_of_what_is_left() -> None:
    assert target_cap([4] * 90 + [10_000], share=0.1) == 40  # of 400
    assert target_cap([4] * 90 + [10_000, 50_000], share=0.1) == 45  # two of them: each of 450
    assert target_cap([4] * 90 + [10_000], share=0.1, most=7) == 7
    assert target_cap([4] * 90 + [10_000], share=1.0) == 10_000


def test_where_there_are_few_users_each_may_have_twice_an_equal_share() -> None:
    assert target_cap([300], share=0.05) == 300
    assert target_cap([300, 1], share=0.05) == 300
    assert target_cap([6, 6, 6, 6, 100], share=0.05) == 16  # of 40
    assert target_cap([9] * 30, share=0.01) == 9
    assert target_cap([0, 0], share=0.05) == target_cap([], share=0.05) == 0


@given(
    targets=st.lists(st.one_of(st.integers(0, 9), st.integers(0, 100_000)), min_size=1, max_size=80),
    share=st.floats(0.001, 1),
)
def test_the_cap_is_the_largest_that_keeps_the_share(targets: list[int], share: float) -> None:
    cap = target_cap(targets, share=share)

    some = [count for count in targets if count]
    allowed = max(share, 2 / len(some)) if some else share
    assert min(some, default=0) <= cap <= max(targets)
    assert cap <= allowed * sum(min(count, cap) for count in targets)
    assert cap == max(targets) or cap + 1 > allowed * sum(min(count, cap + 1) for count in targets)


@given(quiet=st.lists(st.integers(5, 30), min_size=20, max_size=60), loud=st.integers(31, 5_000))
def test_one_loud_account_is_no_more_of_the_training_than_the_share(quiet: list[int], loud: int) -> None:
    streams = [stream(list(range(length)), user=f"u{i:02d}") for i, length in enumerate(quiet)]
    streams.append(stream([7] * loud, user="loud"))  # nothing of it is held out

    examples = build_examples(streams, history_items=20, min_events=5, user_share=0.05)

    own = sum(len(s.rows) - s.first_target for s in examples.training if (s.rows[s.first_target :] == 7).all())
    assert own <= max(0.05, 2 / len(streams)) * examples.targets
    assert sum(c.user_id == "loud" for c in (*examples.validation, *examples.test)) <= 2


def prequential(*streams: UserStream, history_items: int = 20, per_user: int = 10, users: int = 100) -> list[Case]:
    return prequential_cases(streams, history_items=history_items, per_user=per_user, users=users, seed=0)


def test_every_new_item_of_a_window_is_asked_for_before_it_is_learnt() -> None:
    cases = prequential(stream([4, 2, 5, 4], earlier=[1, 2]), stream([7, 8], user="new"))

    assert asked(tuple(cases)) == [
        ([1, 2], 4, [1, 2]),
        ([1, 2, 4, 2], 5, [1, 2, 4]),
        ([7], 8, [7]),  # the very first item of a user has nothing before it to go by
    ]


def test_a_users_questions_are_spread_evenly_over_the_window() -> None:
    long = stream(list(range(10, 19)), earlier=[1])

    assert [c.target for c in prequential(long, per_user=3)] == [10, 14, 18]
    assert [c.target for c in prequential(long, per_user=1)] == [10]
    assert [c.history.tolist() for c in prequential(long, per_user=2, history_items=2)] == [[1], [16, 17]]


def test_users_without_a_new_item_are_not_asked_and_many_users_are_sampled() -> None:
    streams = [stream([1, 2, 1], earlier=[2, 1], user="none"), *(stream([1, 2], user=f"u{i}") for i in range(20))]

    assert [c.user_id for c in prequential(*streams)] == [f"u{i}" for i in range(20)]
    assert len(prequential(*streams[1:], users=6)) == 6
    assert [c.user_id for c in prequential(*streams, users=6)] == [c.user_id for c in prequential(*streams, users=6)]
