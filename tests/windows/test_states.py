"""The whole transition table of windows, and when one is due."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from service.windows.states import (
    OUTCOMES,
    TERMINAL,
    TRANSITIONS,
    Pending,
    SealedBecause,
    WindowState,
    allowed,
    due,
    next_attempt,
    settled,
)

S = WindowState
WRITTEN_DOWN = {
    (S.SEALED, S.TRAINING),
    (S.SEALED, S.SKIPPED),
    (S.TRAINING, S.TRAINING),
    (S.TRAINING, S.PROMOTED),
    (S.TRAINING, S.CANARY),
    (S.TRAINING, S.REFUSED),
    (S.TRAINING, S.NO_CHANGE),
    (S.TRAINING, S.SKIPPED),
    (S.TRAINING, S.FAILED),
    (S.FAILED, S.TRAINING),
    (S.FAILED, S.SKIPPED),
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(S, S)))
def test_exactly_these_transitions_are_allowed(old: WindowState, new: WindowState) -> None:
    assert allowed(old, new) == ((old, new) in WRITTEN_DOWN)


def test_every_state_has_its_row_and_an_outcome_is_for_good() -> None:
    assert set(TRANSITIONS) == set(S)
    assert {state for state in S if not TRANSITIONS[state]} == TERMINAL == OUTCOMES | {S.BASE}


@pytest.mark.parametrize("state", list(S))
@pytest.mark.parametrize("attempts", [0, 2, 3, 4])
def test_a_failure_is_settled_once_its_attempts_are_used_up(state: WindowState, attempts: int) -> None:
    expected = attempts >= 3 if state is S.FAILED else state in TERMINAL
    assert settled(state, attempts, 3) == expected


NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("state", list(S))
@pytest.mark.parametrize(("attempts", "minutes"), [(1, 1), (2, 2), (3, 4), (4, None)])
def test_a_failed_window_waits_twice_as_long_each_time_until_it_is_given_up(
    state: WindowState, attempts: int, minutes: int | None
) -> None:
    found = next_attempt(state, attempts, NOON, limit=4, pause=timedelta(minutes=1))
    wanted = None if minutes is None or state is not S.FAILED else NOON + timedelta(minutes=minutes)
    assert found == wanted


def test_no_pause_is_longer_than_an_hour_unless_the_first_is() -> None:
    for pause, longest in ((timedelta(seconds=30), timedelta(hours=1)), (timedelta(hours=2), timedelta(hours=2))):
        assert next_attempt(S.FAILED, 999_999, NOON, limit=10**6, pause=pause) == NOON + longest


@pytest.mark.parametrize(
    ("events", "minutes", "expected"),
    [
        (0, 600, None),
        (9, 600, None),
        (10, 59, None),
        (10, 60, SealedBecause.AGE),
        (99, 59, None),
        (100, 0, SealedBecause.COUNT),
        (100, 600, SealedBecause.COUNT),
        (10, -60, None),
    ],
)
def test_a_window_is_due_by_count_or_by_age_with_enough_events(
    events: int, minutes: int, expected: SealedBecause | None
) -> None:
    pending = Pending(0, events, NOON if events else None)
    now = NOON + timedelta(minutes=minutes)
    assert due(pending, now, max_age=timedelta(hours=1), max_events=100, min_events=10) == expected
