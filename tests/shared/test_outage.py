"""RELIABILITY.md, 13: Redis may die or hang at any time; no reply fails, no event is lost, it is soon used again."""

import os
import threading
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.events.tables import events
from service.kit.db import Database
from service.settings import Settings
from tests import worlds
from tests.conftest import SetClock
from tests.shared.servers import OwnRedis, Replica, replicas, soon
from tests.worlds import eventually

AWAY_S = float(os.environ.get("ADAPTIDE_TEST_OUTAGE_S", "3"))
"""The scenario's 30 s show nothing that these do not, but for the length of the link's pauses."""
RECOVERS_S = 10.0


class Crowd:
    """Asks, sends events and looks at health, over both replicas, until it is told to stop."""

    def __init__(self, made: list[Replica]) -> None:
        self._made = made
        self.statuses: Counter[str] = Counter()
        self.redis_was_ready = True
        self.acknowledged: set[str] = set()
        self.stale: list[str] = []
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(2)]

    def __enter__(self) -> "Crowd":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, number: int) -> None:
        turn = 0
        while not self._done.wait(0.01):
            one, two = self._made[turn % 2].client, self._made[(turn + 1) % 2].client
            event_id, item = f"{number}-{turn}", worlds.item_id(turn)
            at = worlds.START + timedelta(seconds=turn)
            user = f"user-{number}-{turn // worlds.ITEMS}"
            sent = one.post("/v1/events", json={"events": [worlds.event(event_id, user, item, at)]})
            if sent.status_code == 202:
                self.acknowledged.add(event_id)
            reply = two.post("/v1/recommendations", json={"user_id": user, "limit": 100})
            self.statuses.update([f"events {sent.status_code}", f"recommendations {reply.status_code}"])
            # Another part may take more than a second on a busy machine; this one never holds the service up.
            part = two.get("/health/ready").json()["parts"]["redis"]
            self.redis_was_ready &= part["ready"] or part["state"] == "no_answer"
            if item in [found["item_id"] for found in reply.json().get("items", [])]:
                self.stale.append(event_id)
            turn += 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_an_outage_of_redis_fails_no_request_and_loses_no_event(
    how: str, database_url: str, database: Database, tmp_path: Path, clock: SetClock, own_redis: OwnRedis
) -> None:
    settings = Settings(
        home=tmp_path / "home",
        database_url=database_url,
        log_level="WARNING",
        redis_url=own_redis.url,
        redis_timeout=timedelta(seconds=0.2),
        rate_limit=1e6,
        recommendation_cache=timedelta(seconds=5),
    )
    with replicas(settings, clock, 2) as made:
        soon(lambda: all(replica.link.up for replica in made))
        assert made[0].client.put("/v1/items", json={"items": worlds.items()}).status_code == 200
        made[1].services.catalogue.refresh()
        with Crowd(made) as crowd:
            time.sleep(0.5)
            if how == "dies":
                own_redis.kill()
            else:
                own_redis.pause()
            time.sleep(AWAY_S)
            assert not any(replica.link.up for replica in made)
            during = len(crowd.acknowledged)
            if how == "dies":
                own_redis.start()
            else:
                own_redis.go_on()
            eventually(lambda: all(replica.link.up for replica in made), RECOVERS_S)
            soon(lambda: len(crowd.acknowledged) > during + 5)
        assert set(crowd.statuses) == {"events 202", "recommendations 200"}, crowd.statuses
        assert crowd.redis_was_ready
        assert crowd.stale == []
        with database.read() as connection:
            assert set(connection.scalars(sa.select(events.c.event_id))) == crowd.acknowledged
        soon(lambda: {replica.redis_part()["state"] for replica in made} == {"ok"})
