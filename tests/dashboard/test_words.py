"""How figures are written, and what is said of a window."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.dashboard import words
from service.dashboard.charts import Band, Chart, Line
from service.dashboard.schemas import Freshness
from service.dashboard.window_words import (
    ENDED,
    Beside,
    epochs_chart,
    evaluations_in_order,
    interval_words,
    learning_chart,
    plain_statistics,
    ranking_charts,
    step_detail,
    why,
)
from service.settings import Settings
from service.trials.states import EndReason
from service.windows.repository import Evaluation, Window
from service.windows.schemas import WindowView
from service.windows.states import SealedBecause, WindowState
from service.windows.waiting import Waits

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
EMPTY = Window(
    window_id=3,
    after_seq=0,
    through_seq=9,
    events=9,
    state=WindowState.SEALED,
    sealed_at=NOON,
    sealed_because=SealedBecause.COUNT,
    lease_fence=None,
    attempts=0,
    started_at=None,
    finished_at=None,
    method=None,
    base_id=None,
    incumbent_version=None,
    candidate_version=None,
    verdict=None,
    reason=None,
    steps=None,
    statistics=None,
)
SAME = Evaluation("candidate", 7, 1, 1, 1, 1, comparison={"interval": [0, 0], "confidence": 0.95, "identical": True})


def window(state: WindowState = WindowState.SEALED, **changes: Any) -> WindowView:
    return WindowView.of(replace(EMPTY, state=state, **changes), Settings())


def judged(window_id: int, low: float, high: float) -> WindowView:
    """A window whose incumbent had NDCG@10 0.5 and whose candidate had 0.6."""
    comparison = {"difference": 0.1, "interval": [low, high], "confidence": 0.95, "users": 7}
    found = [
        Evaluation("popularity", 7, 0.1, 0.2, 0.1, 0.2),
        Evaluation("incumbent", 7, 0.4, 0.5, 0.4, 0.5),
        Evaluation("candidate", 7, 0.5, 0.7, 0.5, 0.6, comparison=comparison),
    ]
    statistics = {
        "losses": [3.0, 2.0],
        "validation_loss": [[0, 4.0], [2, 2.5]],
        "gradient_ratio": [0.1, 0.2],
        "best_epoch": 2,
        "users": 7,
    }
    return window(WindowState.PROMOTED, window_id=window_id, evaluations=found, statistics=statistics)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "–"),
        (-3, "0 s"),
        (0.4217, "0.42 s"),
        (4, "4.0 s"),
        (59.6, "1 min"),
        (42, "42 s"),
        (725, "12 min 5 s"),
        (3 * 3600, "3 h"),
        (timedelta(days=2, hours=4, minutes=3), "2 d 4 h"),
    ],
)
def test_a_span_is_said_in_its_two_largest_units(seconds: float | timedelta | None, said: str) -> None:
    assert words.span(seconds) == said


def test_a_moment_is_a_time_element_in_utc() -> None:
    assert words.moment(NOON) == '<time datetime="2026-03-01T12:00:00Z">2026-03-01 12:00:00</time>'
    assert words.moment(None) == "–"


def test_figures_have_fixed_digits_and_a_real_minus() -> None:
    assert [words.figure(0.5), words.signed(-0.25, 2), words.signed(0.1, 1), words.figure(None)] == [
        "0.5000",
        "−0.25",
        "+0.1",
        "–",
    ]
    assert [words.count(1234567), words.percent(0.1234)] == ["1\u202f234\u202f567", "12.3 %"]
    assert [words.milliseconds(0.0123), words.milliseconds(1.5), words.milliseconds(None)] == [
        "12.3 ms",
        "1500 ms",
        "–",
    ]


@pytest.mark.parametrize(
    ("state", "changes", "said"),
    [
        (WindowState.SEALED, {}, "It waits for the updater."),
        (WindowState.CANARY, {}, "It held at the gate and was put on a share of the users."),
        (WindowState.TRAINING, {"attempts": 2}, "Attempt 2 is under way."),
        (WindowState.BASE, {}, "Its events trained the base."),
        (WindowState.SKIPPED, {"reason": "too few events"}, "Too few events."),
        (WindowState.REFUSED, {"reason": "worse_than_incumbent"}, "It ranked worse than what serves."),
        (
            WindowState.REFUSED,
            {"reason": "non_finite_weights, too_few_users"},
            "Its weights are not all finite numbers; too few users could be scored.",
        ),
        (WindowState.PROMOTED, {}, "It held at the gate."),
        (WindowState.PROMOTED, {"reason": "as told"}, "As told."),
        (WindowState.PROMOTED, {"evaluations": [SAME]}, "It ranks exactly as what served."),
        (WindowState.FAILED, {"attempts": 99, "reason": "no memory"}, "No memory."),
        (
            WindowState.FAILED,
            {"attempts": 1, "reason": "no memory", "finished_at": NOON},
            "No memory. It is tried again at 12:00:30 UTC.",
        ),
    ],
)
def test_a_window_says_why_it_is_what_it_is(state: WindowState, changes: dict[str, Any], said: str) -> None:
    assert why(window(state, **changes), Beside()) == said


def test_a_closed_window_says_what_it_waits_for() -> None:
    until = NOON + timedelta(hours=1)
    behind = Beside(Waits(until, window_id=2))
    assert why(window(), behind) == "It waits for window 2, which is tried again at 2026-03-01 13:00:00 UTC."
    behind = Beside(Waits(until, canary="a-1"))
    said = "It waits for the canary of a-1, which is promoted from 2026-03-01 13:00:00 UTC on unless it is ended."
    assert why(window(), behind) == said


def test_how_a_trial_can_end_has_words() -> None:
    assert set(ENDED) == set(EndReason)


def test_an_interval_above_zero_is_better_and_one_around_it_no_worse() -> None:
    assert why(judged(1, 0.01, 0.2), Beside()) == "Better than what served."
    assert why(judged(1, -0.01, 0.2), Beside()) == "No worse than what served."
    for low, high, said in ((0.01, 0.2, "better"), (-0.3, -0.1, "worse"), (-0.1, 0.1, "cannot be told apart")):
        assert said in interval_words({"interval": [low, high], "confidence": 0.95})


def test_the_band_of_the_ranking_chart_is_the_incumbent_plus_the_interval() -> None:
    ndcg, difference, hit = ranking_charts([judged(5, 0.01, 0.2), judged(4, -0.1, 0.3), window()])
    assert ndcg.x == difference.x == hit.x == [4, 5]  # oldest first, the one that was not judged left out
    assert ndcg.band is not None
    assert list(ndcg.band.low) == pytest.approx([0.4, 0.51])
    assert list(ndcg.band.high) == pytest.approx([0.8, 0.7])
    assert {line.label: list(line.values) for line in ndcg.lines} == {
        "candidate": [0.6, 0.6],
        "incumbent": [0.5, 0.5],
        "popularity": [0.2, 0.2],
    }
    assert difference.band is not None
    assert list(difference.band.low) == [-0.1, 0.01]
    assert ranking_charts([window()]) == []


def test_losses_are_charted_by_update_and_by_epoch() -> None:
    by_update = learning_chart([judged(5, 0, 1), window()])
    assert by_update is not None
    assert [list(line.values) for line in by_update.lines] == [[2.0], [2.5], [0.2]]
    by_epoch = epochs_chart(judged(5, 0, 1))
    assert by_epoch is not None
    assert by_epoch.x == [0, 1, 2]
    assert [list(line.values) for line in by_epoch.lines] == [[None, 3.0, 2.0], [4.0, None, 2.5], [None, 0.1, 0.2]]
    assert "Epoch 2 was the best" in by_epoch.note
    assert learning_chart([window()]) is epochs_chart(window()) is None


def test_a_chart_carries_the_same_numbers_as_a_table() -> None:
    chart = Chart("t", "x", [1, 2], [Line("a", [0.1, None])], Band("b", [0, 0], [1, 1]))
    assert [heading for heading, _ in chart.columns] == ["a", "b, low", "b, high"]
    drawn = chart.drawn()
    assert drawn["lines"][0]["values"] == [0.1, None]
    assert drawn["band"]["high"] == [1, 1]


def test_subjects_come_in_one_order_and_steps_say_what_the_statistics_do_not() -> None:
    assert [found.subject for found in evaluations_in_order(judged(1, 0, 1))] == [
        "candidate",
        "incumbent",
        "popularity",
    ]
    step = {"step": "fit", "seconds": 1.5, "outcome": "no_change", "best_epoch": 2, "items": 4}
    assert step_detail(step, {"best_epoch": 2}) == "no change, items 4"
    assert plain_statistics({"users": 7, "losses": [1.0], "share": 0.12345, "done": True}) == [
        ("users", "7"),
        ("share", "0.1235"),
    ]


def test_a_model_that_has_learnt_more_than_the_last_event_is_not_behind() -> None:
    fresh = Freshness(NOON, NOON - timedelta(hours=1), NOON, 0, 0)
    assert fresh.behind == timedelta(0)
    assert replace(fresh, stored=NOON + timedelta(hours=2)).behind == timedelta(hours=2)
    assert replace(fresh, learnt=None).behind is None
