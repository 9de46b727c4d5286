"""Recommendations and events straight into the store, at moments that a test names."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from service.kit.db import Database
from service.kit.ids import least_uuid7
from service.kit.lease_keeper import held
from service.quality import folding
from service.quality.folding import QUALITY_LEASE
from service.recommend import repository as recommendations
from service.settings import Settings
from tests import worlds
from tests.conftest import SetClock

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def minutes(count: float) -> timedelta:
    return timedelta(minutes=count)


def counting(database_url: str, home: Path) -> Settings:
    """A horizon and a bucket of ten minutes, nothing late."""
    return Settings(
        home=home,
        database_url=database_url,
        log_level="WARNING",
        database_answer_timeout=timedelta(seconds=10),
        quality_horizon=minutes(10),
        quality_bucket=minutes(10),
        quality_lateness=timedelta(0),
        rollback_min_recommendations=100,
    )


class Shop:
    """Numbers what it shows and what is taken, so that ids say the order."""

    def __init__(self, database: Database, clock: SetClock, settings: Settings) -> None:
        self.database, self.clock, self.settings = database, clock, settings
        self._made = 0

    def show(
        self,
        user: str | None,
        items: Sequence[str],
        at: datetime = NOON,
        *,
        model: str | None = None,
        base: str | None = None,
    ) -> str:
        """A recommendation; by popularity without model and base. Returns its id."""
        return self.show_all([user], items, at, model=model, base=base)[0]

    def show_all(
        self,
        users: Sequence[str | None],
        items: Sequence[str],
        at: datetime = NOON,
        *,
        model: str | None = None,
        base: str | None = None,
        arm: str | None = None,
    ) -> list[str]:
        """The same list for each of these users, at one moment."""
        rows = []
        for user in users:
            self._made += 1
            rows.append(
                {
                    "recommendation_id": least_uuid7(at)[:-12] + f"{self._made:012x}",
                    "user_id": user,
                    "created_at": at,
                    "strategy": "personalised" if model else "base" if base else "popular",
                    "fallback_reason": None,
                    "base_id": base or ("b-1" if model else None),
                    "adapter_version": model,
                    "catalog_revision": 1,
                    "history": [],
                    "items": [[item, 0.0] for item in items],
                    "arm": arm,
                }
            )
        with self.database.write() as connection:
            recommendations.insert(connection, rows)
        return [str(row["recommendation_id"]) for row in rows]

    def take(
        self, user: str, item: str, at: datetime, recommendation_id: str | None = None, event_type: str = "view"
    ) -> None:
        more = {} if recommendation_id is None else {"recommendation_id": recommendation_id}
        self.take_all([user], item, at, event_type, **more)

    def take_all(self, users: Sequence[str], item: str, at: datetime, event_type: str = "view", **more: str) -> None:
        """The same item by each of these users, at one moment."""
        events = []
        for user in users:
            self._made += 1
            events.append(worlds.event(f"e{self._made}", user, item, at, event_type, **more))
        earlier, self.clock.now = self.clock.now, max(self.clock.now, at)
        worlds.send(self.database, self.clock, events)
        self.clock.now = earlier

    def fold(self, at: datetime | None = None) -> int:
        """Count what is due then (a week later unless given); how many buckets."""
        earlier, self.clock.now = self.clock.now, at or NOON + timedelta(days=7)
        with held(self.database, QUALITY_LEASE, "test", self.settings.lease_duration) as lease:
            assert lease is not None
            done = folding.fold(self.database, self.clock, self.settings, lease)
        self.clock.now = earlier
        return done
