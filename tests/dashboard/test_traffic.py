"""Rates, quantiles and shares out of counters, on numbers that can be checked by hand."""

import math

import pytest

from service.dashboard.traffic import EVERY, KEPT, OVER_S, Sample, TrafficSampler, quantile, read, summary
from service.telemetry import EVENTS, RECOMMENDATIONS, REQUEST_SECONDS

EMPTY = {0.01: 0.0, 0.1: 0.0, math.inf: 0.0}


def sample(at: float, count: float) -> Sample:
    """By then: `count` recommendations, half of them the adapter's and all within 10 ms; twice as many events."""
    strategies = {("personalised", ""): count / 2, ("popular", "no_history"): count / 2}
    return Sample(at, 2 * count, 4 * count, count, strategies, {0.01: count, 0.1: count, math.inf: count})


def test_two_samples_say_what_went_on_between_them() -> None:
    found = summary([sample(100, 0), sample(110, 20)])
    assert found is not None
    assert (found.seconds, found.recommendations, found.events, found.requests, found.failed) == (10, 2, 4, 8, 2)
    assert found.shares == {"personalised": 0.5, "popular": 0.5}
    assert found.reasons == [("no_history", 0.5)]
    assert found.fallback_share == 0.5
    assert found.p50_s == pytest.approx(0.005)


def test_only_the_last_minute_counts_and_the_history_goes_further_back() -> None:
    busy_then_quiet = [sample(at, min(at, 100) * 10) for at in range(0, 201, 20)]
    found = summary(busy_then_quiet)
    assert found is not None
    assert found.seconds == OVER_S
    assert found.recommendations == 0
    assert found.fallback_share is None
    assert (found.p50_s, found.shares) == (None, {})
    assert [asked for asked, _, _ in found.history] == [10] * 5 + [0] * 5


def test_samples_further_apart_than_a_minute_are_compared_all_the_same() -> None:
    found = summary([sample(0, 0), sample(1000, 500)])
    assert found is not None
    assert (found.seconds, found.recommendations) == (1000, 0.5)


def test_one_sample_says_nothing() -> None:
    assert summary([]) is summary([sample(0, 1)]) is None


def test_a_quantile_lies_within_its_bucket_in_proportion() -> None:
    buckets = {0.01: 10.0, 0.1: 20.0, math.inf: 20.0}
    assert quantile(buckets, 0.5) == pytest.approx(0.01)
    assert quantile(buckets, 0.75) == pytest.approx(0.055)
    assert quantile(buckets, 0.25) == pytest.approx(0.005)
    assert quantile({0.01: 1.0, 0.1: 1.0, math.inf: 10.0}, 0.99) == 0.1  # slower than any bound: at least that
    assert quantile(EMPTY, 0.5) is None
    assert quantile({}, 0.5) is None


def test_counters_are_read_as_they_stand() -> None:
    before = read(0)
    EVENTS.labels("accepted").inc(3)
    EVENTS.labels("duplicate").inc(5)
    RECOMMENDATIONS.labels("popular", "overloaded").inc()
    for status, seconds in ((200, 0.004), (503, 9.0)):
        REQUEST_SECONDS.labels("POST", "/v1/recommendations", status).observe(seconds)
    REQUEST_SECONDS.labels("GET", "/health/ready", 503).observe(1)  # nobody's request
    after = read(1)
    assert after.events - before.events == 3
    assert after.recommendations - before.recommendations == 1
    assert (after.requests - before.requests, after.failed - before.failed) == (2, 1)
    assert after.buckets[0.005] - before.buckets.get(0.005, 0) == 1
    assert after.buckets[math.inf] - before.buckets.get(math.inf, 0) == 1  # a refusal is no answer


def test_the_sampler_keeps_the_last_minutes_alone() -> None:
    moments = iter(range(1000))
    sampler = TrafficSampler(lambda: float(next(moments)))
    for _ in range(KEPT + 10):
        sampler.sample()
    found = sampler.summary()
    assert found is not None
    assert len(found.history) == KEPT - 1
    assert EVERY.total_seconds() * (KEPT - 1) == 300
