"""What came of a window, in words and as charts. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.dashboard.charts import Band, Chart, Line
from service.trials.repository import TrialRow
from service.trials.states import EndReason
from service.windows.schemas import EvaluationView, WindowView
from service.windows.states import WindowState
from service.windows.waiting import Waits

SUBJECTS = {"candidate": 1, "incumbent": 2, "base": 3, "popularity": 5}
"""What is scored on a window's users, each with its colour."""
METRICS = {"ndcg_10": "NDCG@10", "hit_10": "Hit@10", "ndcg_5": "NDCG@5", "hit_5": "Hit@5"}
REFUSALS = {
    "non_finite_weights": "its weights are not all finite numbers",
    "too_few_users": "too few users could be scored",
    "worse_than_incumbent": "it ranked worse than what serves",
}
SEALED = {
    "age": "its first event was old enough",
    "count": "it was full",
    "manual": "somebody closed it",
    "base": "a base was built",
}
STEPS = {
    "catalogue": "Read the catalogue",
    "examples": "Make examples",
    "popularity": "Count popularity",
    "evaluate_before": "Score what serves, base, popularity",
    "fit": "Train",
    "evaluate_after": "Score the candidate",
    "gate": "Judge",
    "publish": "Publish",
}

ENDED = {
    EndReason.ASKED: "was ended by {actor}",
    EndReason.EXPIRED: "came to its end",
    EndReason.PROMOTED: "held, and it was promoted",
    EndReason.BASE_CHANGED: "ended, for another base was activated",
    EndReason.REFUSED: "ended, for it was refused",
    EndReason.CORRUPT: "ended, for its files are damaged",
    EndReason.COLLECTED: "ended, for its files were removed",
    EndReason.CONTROL_CHANGED: "ended without a promotion, for another adapter serves than it was compared with",
    EndReason.LIVE_METRIC: "was ended: what users did spoke against it",
    EndReason.SUPERSEDED: "gave way to a newer candidate",
}
"""What became of a trial, after its kind."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What no window's row says. waits: what closed windows wait for; trials: the latest row of each candidate's."""

    waits: Waits | None = None
    trials: Mapping[str, TrialRow] = field(default_factory=dict)


def comparison_of(window: WindowView) -> Mapping[str, Any] | None:
    """Candidate against incumbent, None where no candidate was judged."""
    return next((found.comparison for found in window.evaluations if found.comparison), None)


def why(window: WindowView, beside: Beside) -> str:
    """Why a window is what it is, in a sentence."""
    state, reason = window.state, window.reason
    if state is WindowState.SEALED:
        return _waits(beside.waits)
    if state is WindowState.CANARY:
        return _canary(window, beside)
    if state is WindowState.TRAINING:
        return f"Attempt {window.attempts} is under way."
    if state is WindowState.BASE:
        return "Its events trained the base."
    if state is WindowState.FAILED:
        again = f" It is tried again at {window.next_attempt_at:%H:%M:%S} UTC." if window.next_attempt_at else ""
        return f"{_sentence(reason or 'an attempt failed')}{again}"
    if state is WindowState.REFUSED and reason:
        return _sentence("; ".join(REFUSALS.get(one.strip(), one.strip()) for one in reason.split(",")))
    if state is WindowState.PROMOTED and not reason:
        return _passed(comparison_of(window))
    return _sentence(reason or state.value.replace("_", " "))


def _waits(waits: Waits | None) -> str:
    if waits is None:
        return "It waits for the updater."
    until = f"{waits.until:%Y-%m-%d %H:%M:%S} UTC"
    if waits.canary is not None:
        return f"It waits for the canary of {waits.canary}, which is promoted from {until} on unless it is ended."
    return f"It waits for window {waits.window_id}, which is tried again at {until}."


def _canary(window: WindowView, beside: Beside) -> str:
    row = beside.trials.get(window.candidate_version or "")
    if row is None:
        return "It held at the gate and was put on a share of the users."
    if row.trial is None:
        return _sentence(f"its canary {ended_words(row)}")
    waits = beside.waits
    ours = waits is not None and waits.canary == window.candidate_version
    then = f" It is promoted from {waits.until:%Y-%m-%d %H:%M:%S} UTC on." if waits is not None and ours else ""
    return f"It held at the gate and is on trial: {row.kind.value}, {100 * row.share:g} % of the users.{then}"


def ended_words(row: TrialRow) -> str:
    """How a trial ended, after "its canary"."""
    return ENDED[row.because].format(actor=row.actor) if row.because is not None else "ended"


def _passed(comparison: Mapping[str, Any] | None) -> str:
    low, high = (comparison or {}).get("interval") or (None, None)
    if low is None or high is None:
        return "It held at the gate."
    if (comparison or {}).get("identical"):
        return "It ranks exactly as what served."
    if low > 0:
        return "Better than what served."
    return "No worse than what served."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def interval_words(comparison: Mapping[str, Any]) -> str:
    """What an interval says."""
    low, high = comparison["interval"]
    sure = f"{100 * comparison['confidence']:.0f} %"
    if low > 0:
        said = f"With {sure} confidence the candidate ranks better than the incumbent on these users."
    elif high < 0:
        said = f"With {sure} confidence the candidate ranks worse than the incumbent on these users."
    else:
        said = f"With {sure} confidence the two cannot be told apart on these users."
    return said


def step_label(step: Mapping[str, Any]) -> str:
    name = str(step.get("step", ""))
    return STEPS.get(name, name.replace("_", " ").capitalize())


def step_detail(step: Mapping[str, Any], statistics: Mapping[str, Any] | None) -> str:
    """What else a step wrote down, in one line, but for what the window's statistics say already."""
    said = {"step", "seconds", "outcome", *(statistics or {})}
    more = {name: value for name, value in step.items() if name not in said and value is not None}
    parts = [str(step.get("outcome", "under way")).replace("_", " ")]
    return ", ".join(parts + [f"{name.replace('_', ' ')} {_plain(value)}" for name, value in more.items()])


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def plain_statistics(statistics: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The single figures among a window's statistics."""
    found = statistics or {}
    return [
        (name.replace("_", " "), _plain(value))
        for name, value in found.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    ]


def evaluations_in_order(window: WindowView) -> list[EvaluationView]:
    order = list(SUBJECTS)
    return sorted(window.evaluations, key=lambda found: order.index(found.subject) if found.subject in order else 9)


def ranking_charts(windows: Sequence[WindowView]) -> list[Chart]:
    """NDCG@10 with the interval of the comparison, and Hit@10, of every subject by window; windows newest first."""
    scored = [window for window in reversed(windows) if window.evaluations]
    if not scored:
        return []
    x = [window.window_id for window in scored]

    def lines(metric: str) -> list[Line]:
        values = {subject: [_metric(window, subject, metric) for window in scored] for subject in SUBJECTS}
        return [
            Line(subject, values[subject], colour, dashed=subject == "popularity")
            for subject, colour in SUBJECTS.items()
            if any(value is not None for value in values[subject])
        ]

    ranges = [_around(window) for window in scored]
    band = Band("candidate's interval", [low for low, _ in ranges], [high for _, high in ranges])
    has_band = any(low is not None for low, _ in ranges)
    return [
        Chart(
            "NDCG@10 by window",
            "window",
            x,
            lines("ndcg_10"),
            band if has_band else None,
            note="The band is the incumbent plus the interval of candidate minus incumbent: above the incumbent's line "
            "throughout, the candidate is better for sure. Only this difference has an interval."
            if has_band
            else "",
        ),
        *_difference_chart(scored),
        Chart(
            "Hit@10 by window", "window", x, lines("hit_10"), note="Share of users whose next item was among the ten."
        ),
    ]


def _difference_chart(scored: Sequence[WindowView]) -> list[Chart]:
    judged = [
        (window.window_id, found) for window in scored if (found := comparison_of(window)) and "interval" in found
    ]
    if not judged:
        return []
    x = [window_id for window_id, _ in judged]
    band = Band(
        "interval", [found["interval"][0] for _, found in judged], [found["interval"][1] for _, found in judged]
    )
    lines = [
        Line("candidate minus incumbent", [found["difference"] for _, found in judged], 1),
        Line("no difference", [0.0] * len(judged), 5, dashed=True, points=False),
    ]
    note = f"With its {100 * judged[-1][1]['confidence']:.0f} % interval. Above 0 throughout: better for sure."
    return [Chart("What each update gained, NDCG@10", "window", x, lines, band, note=note)]


def _metric(window: WindowView, subject: str, metric: str) -> float | None:
    return next((getattr(found, metric) for found in window.evaluations if found.subject == subject), None)


def _around(window: WindowView) -> tuple[float | None, float | None]:
    comparison, incumbent = comparison_of(window), _metric(window, "incumbent", "ndcg_10")
    if comparison is None or incumbent is None or "interval" not in comparison:
        return None, None
    low, high = comparison["interval"]
    return incumbent + low, incumbent + high


def learning_chart(windows: Sequence[WindowView]) -> Chart | None:
    """Loss at the end of each update and how hard the proximal term held, by window; windows newest first."""
    learnt = [window for window in reversed(windows) if _last(window, "losses") is not None]
    if not learnt:
        return None
    ratios = [_last(window, "gradient_ratio") for window in learnt]
    return Chart(
        "Loss and proximal ratio by update",
        "window",
        [window.window_id for window in learnt],
        [
            Line("loss, last epoch", [_last(window, "losses") for window in learnt], 1),
            Line("validation loss, best epoch", [_best_validation(window) for window in learnt], 3),
            Line("proximal / data gradient", ratios, 4, dashed=True, right=True),
        ],
        note="Losses in nats per item. The ratio (right) is the proximal term's gradient to the data's in the last "
        "epoch: near 0 the update is free to move, near 1 it is held where it was.",
        y_label="loss",
        right_label="ratio",
    )


def epochs_chart(window: WindowView) -> Chart | None:
    """Loss, validation loss and gradient ratio of one update by epoch."""
    found = window.statistics or {}
    losses = found.get("losses") or []
    if not losses:
        return None
    validation = {int(epoch): loss for epoch, loss in found.get("validation_loss") or []}
    epochs = list(range(0 if 0 in validation else 1, len(losses) + 1))
    ratios = found.get("gradient_ratio") or []
    lines = [
        Line("training loss", [_at(losses, epoch - 1) for epoch in epochs], 1),
        Line("validation loss", [validation.get(epoch) for epoch in epochs], 3),
    ]
    if any(ratios):
        shown = [_at(ratios, epoch - 1) for epoch in epochs]
        lines.append(Line("proximal / data gradient", shown, 4, dashed=True, right=True))
    best = found.get("best_epoch")
    note = f"Epoch {best} was the best on validation and is what was kept." if best else "No epoch beat the start."
    return Chart("Loss by epoch", "epoch", epochs, lines, note=note, y_label="nats per item", right_label="ratio")


def _at(values: Sequence[float], place: int) -> float | None:
    return values[place] if 0 <= place < len(values) else None


def _last(window: WindowView, name: str) -> float | None:
    values = (window.statistics or {}).get(name) or []
    return values[-1] if values else None


def _best_validation(window: WindowView) -> float | None:
    losses = [loss for _, loss in (window.statistics or {}).get("validation_loss") or []]
    return min(losses) if losses else None


def sealed_because(because: str) -> str:
    return f"because {SEALED.get(because, because)}"


FILTERS = {
    "why": why,
    "ended_words": ended_words,
    "comparison": comparison_of,
    "evaluations_in_order": evaluations_in_order,
    "interval_words": interval_words,
    "step_label": step_label,
    "step_detail": step_detail,
    "sealed_because": sealed_because,
}
