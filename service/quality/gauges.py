"""The live figures as Prometheus shows them, set by whoever counts."""

import math
from collections.abc import Iterable
from datetime import datetime

from service.quality.figures import Counts
from service.quality.monitor import Watch
from service.quality.repository import POPULAR, Bucket
from service.quality.schemas import read_off
from service.telemetry import (
    QUALITY_COUNTED,
    QUALITY_COVERAGE,
    QUALITY_GAIN,
    QUALITY_HIT_RATE,
    QUALITY_NOVELTY,
    QUALITY_RECOMMENDATIONS,
    QUALITY_REPETITION,
)


def show(watched: Watch, buckets: Iterable[Bucket], counted_through: datetime | None) -> None:
    """Of the serving version and of popular lists since it began to serve, and of the version before it until then."""
    serving = watched.pointer.adapter_version or watched.pointer.base_id
    previous = watched.before[0] if watched.before else None
    parts: dict[str, list[Counts]] = {"serving": [], "previous": [], "popular": []}
    for bucket in buckets:
        since = watched.since is not None and bucket.end > watched.since
        if since and bucket.by.model == serving:
            parts["serving"].append(bucket.counts)
        elif since and bucket.by.model == POPULAR:
            parts["popular"].append(bucket.counts)
        elif previous is not None and bucket.by.model == previous.model:
            parts["previous"].append(bucket.counts)
    for subject, own in parts.items():
        counts = Counts.total(own)
        found = read_off(counts)
        QUALITY_RECOMMENDATIONS.labels(subject).set(counts.sums.shown)
        for gauge, value in (
            (QUALITY_HIT_RATE, found.hit_rate),
            (QUALITY_GAIN, found.gain),
            (QUALITY_COVERAGE, found.coverage),
            (QUALITY_NOVELTY, found.novelty),
            (QUALITY_REPETITION, found.repetition),
        ):
            gauge.labels(subject).set(math.nan if value is None else value)
    if counted_through is not None:
        QUALITY_COUNTED.set(counted_through.timestamp())
