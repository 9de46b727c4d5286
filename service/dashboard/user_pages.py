"""What a user's page shows: the past, what was recommended and whether it was taken. Each look is audited."""

import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy.engine import Connection

from service.audit import repository as audit
from service.catalog.index import CatalogueIndex
from service.errors import TooManyRequests
from service.events import repository as events
from service.kit.clock import Clock
from service.kit.db import Database
from service.kit.rates import Rates
from service.quality.attribution import Shown
from service.quality.folding import credited
from service.quality.repository import taken_by_name
from service.recommend import repository as recommendations
from service.settings import Settings
from service.users import repository as users
from service.users.service import audit_subject

EVENTS, LISTS = 50, 10
FOREVER = timedelta(days=36_500)
"""Within which an event is credited where ADAPTIDE_QUALITY_HORIZON is empty."""
LATELY, AMONG = 10, 1_000
LOOK_AGAIN_S = 3600.0
LOOKS_PER_SECOND, LOOKS_AT_ONCE = 1.0, 60
"""Of one key: the audit log cannot be pruned, and pages are for people."""
MOST_LOOKS = 10_000


class Acted(StrEnum):
    """How a recommended item was taken later."""

    NAMED = "named"
    """By an event that names the recommendation."""
    LATER = "later"
    """By an event that does not name it and is credited to it: see service.quality.attribution."""


@dataclass(frozen=True, slots=True)
class SeenEvent:
    """title None: the catalogue does not have the item."""

    item_id: str
    title: str | None
    event_type: str
    occurred_at: datetime
    value: float | None
    recommended: bool


@dataclass(frozen=True, slots=True)
class GivenItem:
    rank: int
    item_id: str
    title: str | None
    score: float
    acted: Acted | None


@dataclass(frozen=True, slots=True)
class GivenList:
    recommendation_id: str
    created_at: datetime
    strategy: str
    fallback_reason: str | None
    adapter_version: str | None
    items: tuple[GivenItem, ...]

    @property
    def taken(self) -> int:
        return sum(item.acted is not None for item in self.items)


@dataclass(frozen=True, slots=True)
class UserPage:
    """events: newest first; more: there are older ones. lists: newest first. Both empty for an unknown user."""

    user_id: str
    events: tuple[SeenEvent, ...]
    more: bool
    lists: tuple[GivenList, ...]


class Looks:
    """Notes in the audit log who looked at whom: once an hour for each, in this process. Safe to share."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock
        self._rates, self._lock = Rates(LOOKS_PER_SECOND, LOOKS_AT_ONCE), threading.Lock()
        self._noted: dict[tuple[str, bytes], float] = {}

    def note(self, actor: str, user_id: str) -> None:
        """Returns once it is noted. Raises StoreUnavailable, TooManyRequests for one who looks at very many."""
        # By a hash: memory names nobody who is erased meanwhile.
        now, look = time.monotonic(), (actor, hashlib.sha256(user_id.encode()).digest())
        with self._lock:
            if now - self._noted.get(look, float("-inf")) < LOOK_AGAIN_S:
                return
            early = self._rates.take(actor, now)
        if early > 0:
            raise TooManyRequests("you looked at many users at once; wait a little", retry_after=int(early) + 1)
        with self._database.write() as connection:
            erasures = users.hold_erasures(connection)
            subject = audit_subject(erasures, user_id)
            audit.append(connection, now=self._clock(), actor=actor, action="user.view", subject=subject)
        with self._lock:
            if len(self._noted) >= MOST_LOOKS:
                self._noted = {held: at for held, at in self._noted.items() if now - at < LOOK_AGAIN_S}
                if len(self._noted) >= MOST_LOOKS:
                    self._noted.clear()
            self._noted[look] = now


def read_user(database: Database, settings: Settings, index: CatalogueIndex, user_id: str) -> UserPage:
    """Raises StoreUnavailable."""
    with database.read() as connection:
        rows = events.page(connection, user_id, limit=EVENTS + 1, before_seq=None)
        given = recommendations.latest_of_user(connection, user_id, LISTS)
        acted = _acted(connection, settings, given) if given else {}
    lists = tuple(_given(row, acted.get(row["recommendation_id"], {}), index) for row in given)
    seen = tuple(
        SeenEvent(
            row["item_id"],
            title_of(index, row["item_id"]),
            row["event_type"],
            row["occurred_at"],
            row["value"],
            row["recommendation_id"] is not None,
        )
        for row in rows[:EVENTS]
    )
    return UserPage(user_id, seen, len(rows) > EVENTS, lists)


def read_lately(database: Database) -> list[str]:
    """Users of the newest events. Raises StoreUnavailable."""
    with database.read() as connection:
        return events.latest_users(connection, among=AMONG, limit=LATELY)


def _acted(
    connection: Connection, settings: Settings, given: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Acted]]:
    """recommendation_id -> which of its items were taken, as live quality counts them, and how."""
    shown = [
        Shown(row["recommendation_id"], row["user_id"], row["created_at"], tuple(entry[0] for entry in row["items"]))
        for row in given
    ]
    ignored = settings.ignored_event_types
    taken = credited(connection, shown, settings.quality_horizon or FOREVER, ignored)
    acts = taken_by_name(connection, {one.recommendation_id for one in shown}, ignored)
    named = {(act.recommendation_id, act.item_id) for act in acts}
    return {
        own: {item_id: Acted.NAMED if (own, item_id) in named else Acted.LATER for item_id in items}
        for own, items in taken.items()
    }


def title_of(index: CatalogueIndex, item_id: str) -> str | None:
    row = index.row_of.get(item_id)
    return None if row is None else index.items[row].title


def _given(row: Mapping[str, Any], taken: Mapping[str, Acted], index: CatalogueIndex) -> GivenList:
    items = tuple(
        GivenItem(rank, item_id, title_of(index, item_id), score, taken.get(item_id))
        for rank, (item_id, score, *_) in enumerate(row["items"], 1)
    )
    return GivenList(
        row["recommendation_id"],
        row["created_at"],
        row["strategy"],
        row["fallback_reason"],
        row["adapter_version"],
        items,
    )
