"""Live figures as they are sent."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel

from service.quality.figures import Counts
from service.quality.monitor import Look
from service.quality.sequential import Control
from service.quality.service import Figures, Quality


class FiguresView(BaseModel):
    """Rates of what was counted; null where nothing was."""

    shown: int
    """Recommendations that were counted: all that may be credited to them has had time to come."""
    hits: int
    """Of them, those of which at least one item was taken within the horizon."""
    hit_rate: float | None
    hit_rate_low: float | None
    """95 %, users taken whole within a bucket."""
    hit_rate_high: float | None
    gain: float | None
    """Mean over recommendations of the sum of 1 / log2(rank + 1) over the items that were taken."""
    users: int
    """Distinct users of each bucket, added up."""
    anonymous: int
    """Recommendations for nobody."""
    distinct_items: int
    """Items recommended; over several buckets an estimate, 2.3 % off as a rule."""
    coverage: float | None
    """The share of the catalogue that they are."""
    novelty: float | None
    """Mean of -log2 of an item's share of all interactions, in bits."""
    repetition: float | None
    """Share of recommended items that the same user was shown in the recommendation before."""


class ModelQuality(FiguresView):
    model: str
    """Adapter version, the id of a base that ranked alone, or popular."""
    strategy: str
    arm: str
    immature: int
    """Recommendations whose horizon is not over yet, or that wait to be counted."""
    first: datetime | None
    """Start of the first bucket."""
    last: datetime | None
    """End of the last one."""


class WatchView(BaseModel):
    """What the monitor makes of the serving version. It acts only with ADAPTIDE_ROLLBACK_AUTOMATIC."""

    serving: str | None
    previous: str | None
    """What it is compared with, and would be rolled back to."""
    automatic: bool
    fell: bool
    control: Control | None
    at_most: float | None
    """Bound on its hit rate over the previous one's that holds at all looks together."""
    why: str


class QualityView(BaseModel):
    horizon_seconds: float | None
    """Null: nothing is counted (ADAPTIDE_QUALITY_HORIZON)."""
    counted_through: datetime | None
    """Recommendations made before it are counted."""
    immature_capped: bool
    """There are more immature recommendations than were looked at."""
    models: list[ModelQuality]
    watch: WatchView

    @classmethod
    def of(cls, quality: Quality, look: Look, automatic: bool) -> "QualityView":
        return cls(
            horizon_seconds=None if quality.horizon is None else quality.horizon.total_seconds(),
            counted_through=quality.counted_through,
            immature_capped=quality.immature_capped,
            models=[_model(figures) for figures in quality.models],
            watch=_watch(look, automatic),
        )


def read_off(counts: Counts) -> FiguresView:
    """The rates of what was counted."""
    sums = counts.sums
    low, high = sums.interval() or (None, None)
    return FiguresView(
        shown=sums.shown,
        hits=sums.hits,
        hit_rate=sums.rate,
        hit_rate_low=low,
        hit_rate_high=high,
        gain=_over(counts.gain, sums.shown),
        users=counts.users,
        anonymous=counts.anonymous,
        distinct_items=counts.distinct_items,
        coverage=min(1.0, counts.distinct_items / counts.catalogue) if counts.catalogue else None,
        novelty=_over(counts.novelty, counts.novelty_items),
        repetition=_over(counts.repeated, counts.repeatable),
    )


def _over(total: float, count: int) -> float | None:
    return total / count if count else None


def _model(figures: Figures) -> ModelQuality:
    by: dict[str, Any] = {"model": figures.by.model, "strategy": figures.by.strategy, "arm": figures.by.arm}
    when = {"immature": figures.immature, "first": figures.first, "last": figures.last}
    return ModelQuality(**read_off(figures.counts).model_dump(), **by, **when)


def _watch(look: Look, automatic: bool) -> WatchView:
    decision = look.decision
    return WatchView(
        serving=look.pointer.adapter_version or look.pointer.base_id,
        previous=look.previous.model if look.previous else None,
        automatic=automatic,
        fell=decision is not None and decision.fell,
        control=decision.control if decision else None,
        at_most=decision.at_most if decision else None,
        why=decision.why if decision else look.idle or "",
    )
