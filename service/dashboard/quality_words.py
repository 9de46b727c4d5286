"""Live quality in words and as charts. Pure."""

from collections.abc import Sequence
from datetime import datetime

from service.dashboard.charts import Band, Chart, Line
from service.quality.figures import Sums
from service.quality.repository import POPULAR, Bucket
from service.quality.schemas import QualityView, WatchView
from service.windows.schemas import WindowView

POINTS = 60
"""Of a line at most; buckets are put together for it."""
DRIFT = {
    "new_user_share": ("new users, share", 1),
    "new_item_share": ("new items, share", 2),
    "category_drift": ("categories, distance", 3),
    "code_drift": ("semantic IDs, distance", 4),
}


def verdict(watch: WatchView) -> str:
    """What the monitor makes of it, in a sentence or two."""
    if watch.fell:
        then = "It is rolled back." if watch.automatic else "Nothing is done: ADAPTIDE_ROLLBACK_AUTOMATIC is off."
        return f"{watch.serving} fell below {watch.previous}: {watch.why}. {then}"
    if watch.control is None:
        return f"Nothing is compared: {watch.why}."
    return f"{watch.serving} is not known to be worse than {watch.previous}: {watch.why}."


def drawn(view: QualityView) -> list[str]:
    """The models that charts show: the serving one, the one before it, and popular lists."""
    wanted = (view.watch.serving, view.watch.previous, POPULAR)
    known = {model.model for model in view.models}
    return [name for name in dict.fromkeys(wanted) if name is not None and name in known]


def course_charts(buckets: Sequence[Bucket], view: QualityView) -> list[Chart]:
    """Hit rate and gain over time of the models that are drawn; buckets in order of time."""
    starts = sorted({bucket.start for bucket in buckets})
    if not starts:
        return []
    together = -(-len(starts) // POINTS)
    place = {start: number // together for number, start in enumerate(starts)}
    firsts = starts[::together]
    names = drawn(view)
    sums = {name: [Sums()] * len(firsts) for name in names}
    gains = {name: [0.0] * len(firsts) for name in names}
    for bucket in buckets:
        name, at = bucket.by.model, place[bucket.start]
        if name in sums:
            sums[name][at] += bucket.counts.sums
            gains[name][at] += bucket.counts.gain
    rates = {name: [one.rate for one in own] for name, own in sums.items()}
    mean_gains = {
        name: [gain / one.shown if one.shown else None for gain, one in zip(gains[name], own, strict=True)]
        for name, own in sums.items()
    }
    note = "" if together == 1 else f" Each point is {together} buckets."
    band = _band(names[0], sums[names[0]]) if names and names[0] != POPULAR else None
    return [
        _over_time("Hit rate", firsts, rates, band, "Share of recommendations of which an item was taken." + note),
        _over_time("Gain", firsts, mean_gains, None, "Position-discounted gain of a recommendation." + note),
    ]


def _over_time(
    title: str, starts: Sequence[datetime], values: dict[str, list[float | None]], band: Band | None, note: str
) -> Chart:
    lines = [
        Line(name, own, colour, dashed=name == POPULAR)
        for (name, own), colour in zip(values.items(), (1, 2, 5), strict=False)
    ]
    labels = [f"{start:%Y-%m-%d %H:%M}" for start in starts]
    note = f"{note} From {labels[0]} to {labels[-1]} UTC."
    x = list(range(1, len(starts) + 1))
    return Chart(f"{title} over time", "bucket, oldest first", x, lines, band, note=note, labels=labels)


def _band(name: str, sums: Sequence[Sums]) -> Band:
    intervals = [one.interval() or (None, None) for one in sums]
    return Band(f"{name}, 95 %", [low for low, _ in intervals], [high for _, high in intervals])


def drift_chart(windows: Sequence[WindowView]) -> Chart | None:
    """How far each window's stream had moved from the one before it; windows newest first."""
    measured = [window for window in reversed(windows) if "new_user_share" in (window.statistics or {})]
    if not measured:
        return None
    lines = [
        Line(label, [(window.statistics or {}).get(name) for window in measured], colour)
        for name, (label, colour) in DRIFT.items()
    ]
    note = (
        "Shares of the window's users and items that had not been there before; Jensen-Shannon distance of its "
        "interactions from the previous window's: 0 alike, 1 nothing in common. Small windows are never quite alike."
    )
    return Chart("Drift by window", "window", [window.window_id for window in measured], lines, note=note)
