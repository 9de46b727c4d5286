"""Rates, latency and strategies of this process over the last minute, out of its own metrics.

A thread looks at the counters every few seconds, so that a request pays nothing for being counted here.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise

from prometheus_client import Counter, Histogram

from service.kit.poller import Poller
from service.telemetry import EVENTS, RECOMMENDATIONS, REQUEST_SECONDS

EVERY = timedelta(seconds=5)
KEPT = 61  # five minutes
OVER_S = 60.0
"""What "now" means: rates, latency and shares are over the last minute, or since the start where that is less."""
RECOMMENDING = "/recommendations"  # how their routes end
FAILED = "5"  # how the status of a request begins that the server could not answer


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters at a moment. at: monotonic seconds; buckets: upper bound in seconds -> requests at most so slow."""

    at: float
    events: float = 0
    requests: float = 0
    failed: float = 0
    strategies: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """(strategy, fallback reason or "") -> recommendations."""
    buckets: Mapping[float, float] = field(default_factory=dict)
    """Of recommendations alone."""

    @property
    def recommendations(self) -> float:
        return sum(self.strategies.values())


@dataclass(frozen=True, slots=True)
class Traffic:
    """What went on over the last `seconds` of this process. Rates are per second; shares None without any request."""

    seconds: float
    events: float
    requests: float
    failed: float
    recommendations: float
    p50_s: float | None
    p99_s: float | None
    shares: Mapping[str, float]
    """strategy -> share of the recommendations."""
    reasons: Sequence[tuple[str, float]]
    """Why something else than the adapter answered, with its share of the recommendations, most frequent first."""
    history: Sequence[tuple[float, float, float]]
    """(recommendations, events, p99 in ms or 0) between each two samples of the last minutes, oldest first."""

    @property
    def fallback_share(self) -> float | None:
        return sum(share for _, share in self.reasons) if self.recommendations else None


def summary(samples: Sequence[Sample]) -> Traffic | None:
    """What the samples, oldest first, say of the last OVER_S seconds; None before there are two."""
    if len(samples) < 2:
        return None
    last = samples[-1]
    first = next((sample for sample in samples if last.at - sample.at <= OVER_S), samples[-2])
    first = first if first is not last else samples[-2]
    seconds = last.at - first.at
    asked = last.recommendations - first.recommendations
    grown = {key: value - first.strategies.get(key, 0) for key, value in last.strategies.items()}
    shares: dict[str, float] = {}
    reasons: dict[str, float] = {}
    for (strategy, reason), more in grown.items():
        if asked > 0 and more > 0:
            shares[strategy] = shares.get(strategy, 0) + more / asked
            if reason:
                reasons[reason] = reasons.get(reason, 0) + more / asked
    latency = _between(first.buckets, last.buckets)
    return Traffic(
        seconds=seconds,
        events=(last.events - first.events) / seconds,
        requests=(last.requests - first.requests) / seconds,
        failed=(last.failed - first.failed) / seconds,
        recommendations=asked / seconds,
        p50_s=quantile(latency, 0.5),
        p99_s=quantile(latency, 0.99),
        shares=shares,
        reasons=sorted(reasons.items(), key=lambda found: -found[1]),
        history=[_step(earlier, later) for earlier, later in pairwise(samples)],
    )


def _step(earlier: Sample, later: Sample) -> tuple[float, float, float]:
    seconds = later.at - earlier.at
    slow = quantile(_between(earlier.buckets, later.buckets), 0.99)
    asked = (later.recommendations - earlier.recommendations) / seconds
    return asked, (later.events - earlier.events) / seconds, 1000 * (slow or 0.0)


def _between(first: Mapping[float, float], last: Mapping[float, float]) -> dict[float, float]:
    return {bound: count - first.get(bound, 0) for bound, count in last.items()}


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """Seconds that `share` of the requests took at most, by linear interpolation within its bucket, as Prometheus does.

    buckets: upper bound -> how many took at most that, infinity included. None without requests; what lies beyond the
    last finite bound counts as that bound.
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0
    if total <= 0:
        return None
    wanted, below, counted = share * total, 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= wanted:
            if math.isinf(bound):
                return below
            return below + (bound - below) * (wanted - counted) / max(buckets[bound] - counted, 1e-9)
        below, counted = bound, buckets[bound]
    return below


def read(at: float) -> Sample:
    """This process's counters now."""
    strategies = {
        (labels["strategy"], labels["fallback_reason"]): value for _, labels, value in _samples(RECOMMENDATIONS)
    }
    events = sum(value for _, labels, value in _samples(EVENTS) if labels["outcome"] == "accepted")
    requests, failed, buckets = 0.0, 0.0, dict[float, float]()
    for name, labels, value in _samples(REQUEST_SECONDS):
        if name.endswith("_count") and labels["route"].startswith("/v1/"):
            requests += value
            failed += value if labels["status"].startswith(FAILED) else 0
        elif name.endswith("_bucket") and labels["route"].endswith(RECOMMENDING) and labels["status"] == "200":
            bound = float(labels["le"])
            buckets[bound] = buckets.get(bound, 0) + value
    return Sample(at, events, requests, failed, strategies, buckets)


def _samples(metric: Counter | Histogram) -> list[tuple[str, dict[str, str], float]]:
    found = [sample for family in metric.collect() for sample in family.samples]
    return [(s.name, s.labels, s.value) for s in found if not s.name.endswith("_created")]


class TrafficSampler:
    """Keeps the last samples of this process; start() and stop() once each."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, every: timedelta = EVERY) -> None:
        self._monotonic = monotonic
        self._kept: deque[Sample] = deque(maxlen=KEPT)  # appended to by one thread; read as a whole by others
        self._poller = Poller("dashboard-traffic", every, self.sample)

    def start(self) -> None:
        self._poller.start()

    def stop(self) -> None:
        self._poller.stop()

    def sample(self) -> None:
        """Look at the counters once."""
        self._kept.append(read(self._monotonic()))

    def summary(self) -> Traffic | None:
        return summary(tuple(self._kept))
