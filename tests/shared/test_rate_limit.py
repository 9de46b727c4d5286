"""A key that asks too often is told when to come back: by all replicas together with Redis, by each one without."""

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from service.access.schemas import Scope
from service.kit import rates
from service.kit.rates import Rates, SharedRates
from service.kit.redis_link import RedisLink
from service.settings import Settings
from tests.conftest import SetClock
from tests.http.test_middleware import assert_problem
from tests.shared.conftest import PATIENCE
from tests.shared.servers import OwnRedis, replicas, soon

SQLITE_ONLY = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
SLOW = 0.001
"""Requests a second: nothing comes back while a test runs."""


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path / "home",
        database_url=database_url,
        log_level="WARNING",
        rate_limit=SLOW,
        rate_limit_burst=5,
        redis_timeout=PATIENCE,
    )


def status(client: TestClient) -> int:
    return client.get("/v1/users/u/events").status_code


def test_a_burst_and_then_one_each_interval() -> None:
    kept = Rates(per_second=2, burst=3)
    assert [kept.take("k", now=10.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert kept.take("other", now=10.0) == 0
    assert kept.take("k", now=10.25) == 0.25, "a refused request costs nothing"
    assert kept.take("k", now=10.5) == 0
    assert kept.take("k", now=10.5) == 0.5
    assert [kept.take("k", now=100.0) for _ in range(4)] == [0, 0, 0, 0.5], "a pause gives back no more than the burst"


@given(
    st.lists(st.floats(0, 3), max_size=60),
    st.sampled_from([0.5, 1.0, 4.0]),
    st.integers(1, 5),
)
def test_never_more_than_the_burst_and_the_rate_allow(pauses: list[float], rate: float, burst: int) -> None:
    kept, now, taken = Rates(rate, burst), 0.0, []
    for pause in pauses:
        now += pause
        if early := kept.take("k", now):
            now += early + 1e-9
            assert kept.take("k", now) == 0, "who comes back when told to may go on"
        taken.append(now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + rate * (taken[last] - taken[first]) + 1e-6


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MOST_KEYS", 10)
    kept = Rates(per_second=1, burst=1)
    for number in range(100):
        assert kept.take(str(number), now=number / 100) == 0
        assert len(kept._even_at) <= 10


def test_redis_counts_as_the_process_does(link: RedisLink) -> None:
    shared = SharedRates(link, per_second=SLOW, burst=3)
    waits = shared.take(["k", "k", "other", "k", "k"])
    assert waits[:4] == [0, 0, 0, 0]
    assert waits[4] == pytest.approx(1 / SLOW, rel=0.05)
    quick = SharedRates(link, per_second=20, burst=1)
    assert quick.take(["q"]) == [0]
    soon(lambda: quick.take(["q"]) == [0])


@SQLITE_ONLY
def test_two_replicas_share_one_allowance(settings: Settings, clock: SetClock, redis_url: str, prefix: str) -> None:
    shared = {"redis_url": Settings(redis_url=redis_url).redis_url, "redis_prefix": prefix}
    with replicas(settings.model_copy(update=shared), clock, 2) as (one, two):
        soon(lambda: one.link.up and two.link.up)
        assert [status(replica.client) for replica in (one, two, one, two, one)] == [200] * 5
        for replica in (one, two):
            reply = replica.client.get("/v1/users/u/events")
            assert_problem(reply, 429, "too_many_requests")
            assert 900 < int(reply.headers["Retry-After"]) <= 1000
        for path in ("/health/live", "/health/ready", "/health/startup", "/metrics", "/docs", "/openapi.json"):
            assert [one.client.get(path).status_code for _ in range(6)] == [200] * 6, path
        key = one.services.access.create("another", frozenset({Scope.READ}), actor="cli").token
        other = {"Authorization": f"Bearer {key}"}
        assert two.client.get("/v1/users/u/events", headers=other).status_code == 200
        forged = {"Authorization": f"Bearer {key[:-3]}xyz"}
        assert [two.client.get("/v1/users/u/events", headers=forged).status_code for _ in range(6)] == [401] * 5 + [429]
        assert two.client.get("/v1/users/u/events", headers=other).status_code == 200, "a forged key uses up its own"
        assert one.client.get("/v1/users/u/events", headers={"Authorization": ""}).status_code == 401
        assert "adaptide_rate_limited_requests_total" in one.client.get("/metrics").text


@SQLITE_ONLY
def test_without_redis_each_process_counts_for_itself(settings: Settings, clock: SetClock) -> None:
    with replicas(settings, clock) as (replica,):
        assert [status(replica.client) for _ in range(6)] == [200] * 5 + [429]


@SQLITE_ONLY
def test_when_redis_goes_away_each_process_goes_on_by_itself(
    settings: Settings, clock: SetClock, own_redis: OwnRedis
) -> None:
    shared = {"redis_url": Settings(redis_url=own_redis.url).redis_url, "redis_timeout": timedelta(seconds=0.2)}
    with replicas(settings.model_copy(update=shared), clock) as (replica,):
        soon(lambda: replica.link.up)
        assert status(replica.client) == 200
        own_redis.pause()
        assert [status(replica.client) for _ in range(6)] == [200] * 5 + [429]
        own_redis.go_on()


@SQLITE_ONLY
def test_no_limit_is_the_default(settings: Settings, clock: SetClock) -> None:
    assert Settings().rate_limit == 0
    with replicas(settings.model_copy(update={"rate_limit": 0.0}), clock) as (replica,):
        assert {status(replica.client) for _ in range(20)} == {200}
