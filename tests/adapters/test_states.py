"""The whole transition table, and what a rollback goes back to."""

import itertools

import pytest

from service.adapters.states import (
    INITIAL,
    PROMOTABLE,
    RESTORABLE,
    TRANSITIONS,
    Action,
    AdapterState,
    Move,
    allowed,
    previous,
    served_stack,
)

S = AdapterState
WRITTEN_DOWN = {
    (S.CANDIDATE, S.PASSED),
    (S.CANDIDATE, S.REFUSED),
    (S.CANDIDATE, S.ACTIVE),
    (S.CANDIDATE, S.CORRUPT),
    (S.PASSED, S.ACTIVE),
    (S.PASSED, S.CORRUPT),
    (S.ACTIVE, S.RETIRED),
    (S.ACTIVE, S.CORRUPT),
    (S.RETIRED, S.ACTIVE),
    (S.RETIRED, S.CORRUPT),
    (S.CORRUPT, S.ACTIVE),
    (S.CORRUPT, S.CANDIDATE),
    (S.CANDIDATE, S.COLLECTED),
    (S.PASSED, S.COLLECTED),
    (S.RETIRED, S.COLLECTED),
    (S.REFUSED, S.COLLECTED),
    (S.CORRUPT, S.COLLECTED),
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(S, S)))
def test_exactly_these_transitions_are_allowed(old: AdapterState, new: AdapterState) -> None:
    assert allowed(old, new) == ((old, new) in WRITTEN_DOWN)


def test_every_state_has_its_row() -> None:
    assert set(TRANSITIONS) == set(S)


def test_a_refusal_is_for_good() -> None:
    reached, frontier = set(), {S.REFUSED}
    while frontier:
        reached |= frontier
        frontier = {new for old in frontier for new in TRANSITIONS[old]} - reached
    assert reached == {S.REFUSED, S.COLLECTED}


def test_what_may_be_promoted_may_become_active() -> None:
    assert {state for state in S if allowed(state, S.ACTIVE)} - {S.CORRUPT} == PROMOTABLE
    assert RESTORABLE < PROMOTABLE
    assert S.ACTIVE not in INITIAL


def moves(*steps: str | None) -> list[Move]:
    """`a`: promote a; `<a`: roll back to a; `<`: roll back to the base alone; None first: a base without adapter."""
    found = [Move(Action.BASE, steps[0])]
    for step in steps[1:]:
        assert step is not None
        found.append(Move(Action.ROLLBACK, step[1:] or None) if step.startswith("<") else Move(Action.WINDOW, step))
    return found


@pytest.mark.parametrize(
    ("steps", "stack"),
    [
        ((None,), [None]),
        (("a",), ["a"]),
        ((None, "a", "b", "c"), [None, "a", "b", "c"]),
        ((None, "a", "b", "c", "<b"), [None, "a", "b"]),
        ((None, "a", "b", "c", "<b", "<a", "<"), [None]),
        ((None, "a", "b", "c", "<a"), [None, "a"]),
        ((None, "a", "b", "<a", "c"), [None, "a", "c"]),
        ((None, "a", "b", "a", "<a"), [None, "a"]),
        ((None, "a", "b", "<x"), [None, "a", "x"]),
        (("a", "b", "<"), [None]),
        (("a", "<"), [None]),
    ],
)
def test_the_stack_holds_what_one_can_go_back_through(steps: tuple[str | None, ...], stack: list[str | None]) -> None:
    assert served_stack(moves(*steps)) == stack


def test_a_new_base_starts_a_new_stack() -> None:
    assert served_stack([*moves(None, "a", "b"), Move(Action.BASE, None), Move(Action.PROMOTE, "c")]) == [None, "c"]


def test_going_back_repeatedly_never_goes_forth() -> None:
    history = moves(None, "a", "b", "c")
    seen = []
    while (step := previous(served_stack(history), lambda version: True))[0]:
        seen.append(step[1])
        history.append(Move(Action.ROLLBACK, step[1]))
    assert seen == ["b", "a", None]


def test_what_may_not_be_restored_and_repeats_are_passed_over() -> None:
    assert previous([None, "a", "b", "c"], lambda version: version != "b") == (True, "a")
    assert previous(["a", "b", "a"], lambda version: version != "b") == (False, None)
    assert previous([None], lambda version: True) == (False, None)
