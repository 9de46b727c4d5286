"""Redis dies or hangs, the database hangs, a writer keeps the file locked: what goes on, and how it comes back."""

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from redis import Redis
from sqlalchemy.engine import make_url

from service.events.tables import events
from service.kit.db import Database
from tests import worlds
from tests.built import BuiltWorld
from tests.chaos.crowd import EVENTS, RECOMMENDATIONS, Crowd, p99_ms
from tests.chaos.scenarios import FULL, sized
from tests.chaos.served import HOST, USERS, Served, World, nursery
from tests.cluster.nursery import Nursery
from tests.conftest import PostgresStore
from tests.proxies import PausableProxy, pausable
from tests.shared.conftest import own_redis  # noqa: F401  # a fixture
from tests.shared.servers import OwnRedis

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(sized(300, 3600))]

USUAL_S, AWAY_S = sized(2.0, 30.0), sized(4.0, 30.0)
RECOVERS_S = 10.0
MOST_MIB = 100.0
MOST_THREADS = 60  # the pool of the routes has 40, and a few of each part's own


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with nursery(tmp_path_factory.mktemp("nursery")) as made:
        yield made


@pytest.fixture
def world(processes: Nursery, tmp_path: Path, _sqlite_template: Path, built_world: BuiltWorld) -> Iterator[World]:
    """On SQLite."""
    shutil.copy(_sqlite_template, tmp_path / "adaptide.db")
    world = World(processes, tmp_path, f"sqlite:///{tmp_path / 'adaptide.db'}", built_world)
    yield world
    world.close()


class Size:
    """What processes take, and how it has grown since."""

    def __init__(self, *served: Served) -> None:
        self._served = served
        self._memory, self._threads = self._now()

    def _now(self) -> tuple[float, int]:
        return max(one.resident_mib() for one in self._served), max(one.threads() for one in self._served)

    def assert_bounded(self, figures: dict[str, Any]) -> None:
        memory, threads = self._now()
        figures |= {"memory_grown_mib": round(memory - self._memory), "threads": threads}
        assert memory - self._memory <= MOST_MIB
        assert threads <= MOST_THREADS


def stored(database: Database) -> set[str]:
    with database.read() as connection:
        found = connection.scalars(sa.select(events.c.event_id).where(~events.c.event_id.startswith("first-")))
        return set(found)


@pytest.mark.scenario(13)
@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_an_outage_of_redis_fails_no_request_and_loses_no_event(
    how: str,
    world: World,
    own_redis: OwnRedis,  # noqa: F811
    figures: dict[str, Any],
) -> None:
    settings = {"REDIS_URL": own_redis.url, "RATE_LIMIT": "1000000", "RECOMMENDATION_CACHE": "5"}
    with world.serve(**settings) as one, world.serve(**settings) as two:
        both = (one, two)
        for served in both:
            connected(served, 60)
        size = Size(*both)
        with Crowd([one, two]) as crowd:
            usual = time.monotonic()
            time.sleep(USUAL_S)
            away = time.monotonic()
            own_redis.kill() if how == "dies" else own_redis.pause()
            time.sleep(AWAY_S / 2)
            assert [served.metric("adaptide_redis_up") for served in both] == [0, 0]
            one.until("it is ready without", lambda: one.client.get("/health/ready").is_success or None)
            swaps = time.monotonic()
            revision = moved(one, "rollback", {"to_version": "base"})
            converged = [follows(served, revision) for served in both]
            swapped = time.monotonic()
            time.sleep(max(0.0, away + AWAY_S - time.monotonic()))
            size.assert_bounded(figures)
            back = time.monotonic()
            own_redis.start() if how == "dies" else own_redis.go_on()
            for served in both:
                connected(served, RECOVERS_S)
            recovered = time.monotonic() - back
            for served in both:
                served.until("what Redis keeps is used again", lambda served=served: cached(served), RECOVERS_S)
            revision = moved(two, f"{world.built.adapter_version}/promote")
            again = [follows(served, revision) for served in both]
        with Redis(port=own_redis.port) as client:
            kept = {key.split(b":")[1] for key in client.scan_iter("adaptide:*")}
        usual_p99 = p99_ms(crowd.during(usual, away, RECOMMENDATIONS))
        # a swap has its own price (scenario 9)
        away_p99 = p99_ms(crowd.during(away, swaps, RECOMMENDATIONS) + crowd.during(swapped, back, RECOMMENDATIONS))
        figures |= {
            "requests": len(crowd.seen),
            "failed": sum(seen.status >= 500 for seen in crowd.seen),
            "lost": len(crowd.acknowledged - stored(world.database)),
            "p99_usual_ms": round(usual_p99),
            "p99_away_ms": round(away_p99),
            "p99_ratio": round(away_p99 / usual_p99, 2),
            "recovers_s": round(recovered, 1),
            "promotion_reaches_all_s": round(max(converged), 1),
            "afterwards_s": round(max(again), 1),
        }
        assert set(crowd.statuses) == {(EVENTS, 202), (RECOMMENDATIONS, 200)}, crowd.statuses
        assert crowd.stale == []
        assert stored(world.database) == crowd.acknowledged
        assert len(crowd.during(back, time.monotonic(), EVENTS)) > 5
        assert kept >= {b"past", b"answer"}, kept
        if FULL:
            assert away_p99 <= 1.5 * usual_p99


def connected(served: Served, seconds: float) -> None:
    served.until("Redis is used", lambda: served.metric("adaptide_redis_up") == 1 or None, seconds)


def cached(served: Served) -> bool | None:
    """Whether the same question finds what was kept for it."""
    before = served.metric('adaptide_cache_lookups_total{.*outcome="hit"}')
    served.strategy()
    return served.metric('adaptide_cache_lookups_total{.*outcome="hit"}') > before or None


def moved(served: Served, how: str, body: dict[str, str] | None = None) -> int:
    """The pointer's revision after a move."""
    reply = served.client.post(f"/v1/admin/adapters/{how}", json=body)
    assert reply.status_code == 200, reply.text
    revision: int = reply.json()["revision"]
    return revision


def follows(served: Served, revision: int) -> float:
    """Seconds until it serves the revision, 10 at most."""
    began = time.monotonic()
    served.until("it follows", lambda: served.metric("adaptide_served_revision") >= revision or None, RECOVERS_S)
    return time.monotonic() - began


@pytest.fixture
def proxy(_postgres: PostgresStore) -> Iterator[PausableProxy]:
    where = make_url(_postgres.url)
    with pausable(where.host or HOST, where.port or 5432) as proxy:
        yield proxy
    _postgres.reset()


@pytest.mark.postgres
@pytest.mark.scenario(14)
def test_without_a_database_that_answers_recommendations_go_on_and_events_are_refused_soon(
    processes: Nursery,
    tmp_path: Path,
    _postgres: PostgresStore,  # noqa: PT019
    proxy: PausableProxy,
    built_world: BuiltWorld,
    figures: dict[str, Any],
) -> None:
    world = World(processes, tmp_path, _postgres.url, built_world)
    world.url = make_url(_postgres.url).set(host=HOST, port=proxy.port).render_as_string(hide_password=False)
    with world.serve() as served:
        size = Size(served)
        with Crowd([served], users=4) as crowd, ThreadPoolExecutor(24) as pool:
            time.sleep(USUAL_S)
            away = time.monotonic()
            proxy.pause()
            at_once = [pool.submit(post, served, number) for number in range(24)]
            time.sleep(AWAY_S - 1)
            assert served.client.get("/health/ready").status_code == 503
            assert served.client.get("/health/serving").status_code == 200
            assert served.client.get("/health/live").status_code == 200
            time.sleep(max(0.0, away + AWAY_S - time.monotonic()))
            size.assert_bounded(figures)
            last = time.monotonic()
            proxy.go_on()
            served.until("events are taken", lambda: post(served, 99)[1].status_code == 202 or None, RECOVERS_S)
            served.wait_until_personal(RECOVERS_S)
            recovered = time.monotonic() - last
            time.sleep(0.5)
        # what is asked just before the end may be answered after it
        recommended = crowd.during(away, last - 0.1, RECOMMENDATIONS)
        refused = [(seen.status, seen.ms, seen.retry_after) for seen in crowd.during(away, last - 2, EVENTS)]
        refused += [(reply.status_code, ms, reply.headers.get("Retry-After")) for ms, reply in map(result, at_once)]
        figures |= {
            "recommendations": len(recommended),
            "events_refused": len(refused),
            "slowest_refusal_ms": round(max(ms for _, ms, _ in refused)),
            "recommendations_p99_ms": round(p99_ms(recommended)),
            "recovers_s": round(recovered, 1),
            "lost": len(crowd.acknowledged - stored(world.database)),
        }
        assert {status for _, status in crowd.statuses} <= {200, 202, 503}, crowd.statuses
        assert {seen.status for seen in recommended} == {200}
        assert {seen.reason for seen in recommended} <= {"store_unavailable", "no_history"}
        assert sum(seen.reason == "store_unavailable" for seen in recommended) > 5
        assert all(seen.items for seen in recommended)
        assert {status for status, _, _ in refused} == {503}
        assert {retry_after for _, _, retry_after in refused} <= {"1", "2", "3"}  # at the door it is drawn
        assert max(ms for _, ms, _ in refused) <= sized(5000, 2000)  # a busy machine may be late by itself
        assert crowd.acknowledged <= stored(world.database)
        for number in range(3):  # whatever became of it meanwhile, sending it again counts it once
            body = post(served, number)[1].json()
            assert body["accepted"] + body["duplicates"] == 1
    world.close()


def result(future: Any) -> tuple[float, httpx.Response]:
    found: tuple[float, httpx.Response] = future.result()
    return found


def post(served: Served, number: int) -> tuple[float, httpx.Response]:
    """Milliseconds, and the reply to one event."""
    event = worlds.event(f"paused-{number}", "u01", worlds.item_id(number), worlds.START)
    began = time.monotonic()
    reply = served.client.post("/v1/events", json={"events": [event]})
    return 1000 * (time.monotonic() - began), reply


@pytest.mark.scenario(14)
def test_a_writer_that_keeps_the_file_locked_holds_up_writes_alone(world: World, figures: dict[str, Any]) -> None:
    with world.serve() as served:
        size = Size(served)
        with Crowd([served]) as crowd, ThreadPoolExecutor(8) as pool:
            time.sleep(USUAL_S)
            away = time.monotonic()
            with world.database.write():
                waiting = [pool.submit(post, served, number) for number in range(8)]
                asked = []
                while time.monotonic() < away + AWAY_S:
                    began = time.monotonic()
                    reply = served.client.post("/v1/recommendations", json={"user_id": USERS[len(asked) % 60]})
                    asked.append((reply.status_code, reply.json()["strategy"], time.monotonic() - began))
                size.assert_bounded(figures)
                assert served.client.get("/health/live").status_code == 200
                assert served.client.get("/health/ready").status_code == 200
            last = time.monotonic()
            served.until("events are taken", lambda: post(served, 99)[1].status_code == 202 or None, RECOVERS_S)
            figures["recovers_s"] = round(time.monotonic() - last, 1)
            replies = [result(future) for future in waiting]
        figures |= {
            "recommendations": len(asked),
            "slowest_recommendation_s": round(max(seconds for _, _, seconds in asked), 1),
            "events_refused": sum(reply.status_code == 503 for _, reply in replies),
        }
        assert {(status, strategy) for status, strategy, _ in asked} == {(200, "personalised")}
        assert sum(seconds < 1 for _, _, seconds in asked) > len(asked) / 2  # few wait for their record
        assert {reply.status_code for _, reply in replies} <= {202, 503}
        assert all("Retry-After" in reply.headers for _, reply in replies if reply.status_code == 503)
        assert {status for _, status in crowd.statuses} <= {200, 202, 503}
        assert crowd.acknowledged <= stored(world.database)
