"""The serving version is rolled back when it fell below the one before it: once, on the revision that was judged."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from service.adapters import repository as adapters
from service.adapters import service as registry
from service.adapters.moves import Activation, MoveRequest
from service.adapters.states import AdapterState
from service.audit.tables import audit_log
from service.kit.db import Database
from service.kit.lease_keeper import held
from service.quality import monitor
from service.quality.folding import QUALITY_LEASE
from service.quality.sequential import Control
from service.settings import Settings
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock
from tests.quality.shown import NOON, Shop, minutes


class Stage:
    """A base and adapters that serve one after the other, and what their recommendations come to."""

    def __init__(self, shop: Shop, shelf: Shelf, clock: SetClock) -> None:
        self.shop, self.shelf, self.clock = shop, shelf, clock
        self.database, self.settings = shop.database, shop.settings
        clock.now = NOON - minutes(10)
        self.base = shelf.active_base()
        self.rows = 0

    def promote(self, value: float, at: float) -> str:
        """A new adapter serves from then on (minutes after noon)."""
        self.clock.now = NOON + minutes(at)
        version = self.shelf.adapter(self.base, value)
        registry.promote(self.database, self.clock, self.shelf.artifacts, version, MoveRequest("cli"))
        return version

    def serve(
        self,
        version: str | None,
        at: float,
        shown: int = 200,
        hits: int = 0,
        model: str | None = None,
        arm: str | None = None,
    ) -> None:
        """Recommendations of one minute, each for a user of its own."""
        moment = NOON + minutes(at)
        users = [f"u{self.rows + number}" for number in range(shown)]
        self.rows += shown
        base = None if model == "popular" else self.base
        self.shop.show_all(users, ["a"], moment, model=version, base=base, arm=arm)
        self.shop.take_all(users[:hits], "a", moment + minutes(1))

    def popular(self, at: float, shown: int = 200, hits: int = 100) -> None:
        self.serve(None, at, shown, hits, "popular")

    def act(self, **settings: object) -> Activation | None:
        chosen = self.settings.model_copy(update={"rollback_automatic": True} | settings)
        with held(self.database, QUALITY_LEASE, "test", chosen.lease_duration) as lease:
            assert lease is not None
            return monitor.act(self.database, self.clock, chosen, self.shelf.artifacts, lease)

    def look(self, **settings: object) -> monitor.Look:
        return monitor.look(self.database, self.settings.model_copy(update=settings))

    def pointer(self) -> adapters.Pointer:
        with self.database.read() as connection:
            return adapters.read_pointer(connection)

    def good_then_bad(self) -> tuple[str, str]:
        """A version of which half of the recommendations are hits, and after it one without any."""
        good = self.promote(0.1, 0)
        self.serve(good, 5, hits=100)
        self.popular(5)
        bad = self.promote(0.2, 20)
        self.serve(bad, 25)
        self.popular(25)
        self.shop.fold()
        return good, bad


@pytest.fixture
def stage(shop: Shop, tmp_path: Path, database: Database, clock: SetClock) -> Stage:
    return Stage(shop, Shelf(tmp_path, database, clock), clock)


def test_a_worse_version_goes_back_to_the_one_before_it(stage: Stage) -> None:
    good, bad = stage.good_then_bad()
    done = stage.act()
    assert done is not None
    assert (done.from_version, done.to_version) == (bad, good)
    assert stage.pointer().adapter_version == good
    with stage.database.read() as connection:
        [row] = connection.execute(sa.select(audit_log).where(audit_log.c.audit_id == done.audit_id)).mappings()
    assert (row["actor"], row["action"], row["subject"]) == (monitor.ACTOR, "adapter.rollback", good)
    assert "popularity control" in row["details"]["reason"]


def test_it_only_says_so_unless_it_is_turned_on(stage: Stage, settings: Settings) -> None:
    _, bad = stage.good_then_bad()
    assert not settings.rollback_automatic
    assert stage.act(rollback_automatic=False) is None
    assert stage.pointer().adapter_version == bad
    found = stage.look()
    assert found.decision is not None
    assert (found.decision.fell, found.decision.control) == (True, Control.POPULARITY)


def test_one_rollback_does_not_lead_to_the_next(stage: Stage) -> None:
    older = stage.promote(0.3, -5)
    stage.serve(older, -4, hits=200)
    stage.popular(-4)
    good, _ = stage.good_then_bad()  # itself worse than the first
    assert stage.act() is not None
    assert stage.act() is None
    assert stage.pointer().adapter_version == good


def test_what_a_person_promotes_again_stays(stage: Stage) -> None:
    _, bad = stage.good_then_bad()
    assert stage.act() is not None
    registry.promote(stage.database, stage.clock, stage.shelf.artifacts, bad, MoveRequest("key:1"))
    assert stage.act() is None
    assert stage.look().idle == "it was rolled back automatically before, and promoted by a person"


def test_a_newer_version_is_watched_again(stage: Stage) -> None:
    good, _ = stage.good_then_bad()
    assert stage.act() is not None
    stage.serve(good, 35, hits=100)
    stage.popular(35)
    worse = stage.promote(0.4, 40)
    stage.serve(worse, 45)
    stage.popular(45)
    stage.shop.fold()
    done = stage.act()
    assert done is not None
    assert (done.from_version, done.to_version) == (worse, good)


def test_a_race_with_an_admin_is_lost_cleanly(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.good_then_bad()
    judged = stage.look()
    newer = stage.promote(0.5, 50)
    monkeypatch.setattr(monitor, "look", lambda database, settings: judged)  # as if it had been promoted just after
    assert stage.act() is None
    assert stage.pointer().adapter_version == newer


def test_a_damaged_version_is_not_gone_back_to(stage: Stage) -> None:
    good, bad = stage.good_then_bad()
    stage.shelf.damage(good)
    assert stage.act() is None
    assert stage.pointer().adapter_version == bad
    with stage.database.read() as connection:
        found = adapters.find_adapter(connection, good)
    assert found is not None
    assert found.state is AdapterState.CORRUPT


def test_a_version_that_served_too_shortly_is_passed_over(stage: Stage) -> None:
    good = stage.promote(0.1, 0)
    stage.serve(good, 5, hits=100)
    stage.popular(5)
    brief = stage.promote(0.2, 10)
    stage.serve(brief, 10, shown=5)
    worse = stage.promote(0.3, 20)
    stage.serve(worse, 25)
    stage.popular(25)
    stage.shop.fold()
    done = stage.act()
    assert done is not None
    assert (done.from_version, done.to_version) == (worse, good)


def test_the_base_alone_can_be_gone_back_to(stage: Stage) -> None:
    stage.serve(None, -5, hits=100)
    stage.popular(-5)
    bad = stage.promote(0.1, 0)
    stage.serve(bad, 5)
    stage.popular(5)
    stage.shop.fold()
    done = stage.act()
    assert done is not None
    assert (done.from_version, done.to_version) == (bad, None)


def test_a_version_that_holds_stays(stage: Stage) -> None:
    good = stage.promote(0.1, 0)
    stage.serve(good, 5, hits=100)
    stage.popular(5)
    as_good = stage.promote(0.2, 20)
    stage.serve(as_good, 25, hits=95)
    stage.popular(25)
    stage.shop.fold()
    assert stage.act() is None
    assert stage.pointer().adapter_version == as_good


def test_without_popular_lists_nothing_is_decided_unless_asked_for(stage: Stage) -> None:
    good = stage.promote(0.1, 0)
    stage.serve(good, 5, hits=100)
    bad = stage.promote(0.2, 20)
    stage.serve(bad, 25)
    stage.shop.fold()
    assert stage.act() is None
    assert "nothing controls for the time" in (stage.look().decision or pytest.fail("no decision")).why
    assert stage.act(rollback_uncontrolled=True) is not None


def test_a_control_arm_that_served_at_the_same_time_is_what_counts(stage: Stage) -> None:
    good = stage.promote(0.1, 0)
    stage.serve(good, 5, hits=20)  # a bad hour
    bad = stage.promote(0.2, 20)
    stage.serve(bad, 25, hits=40)
    stage.serve(good, 25, hits=120)  # a good hour for both, and the old one is better
    stage.shop.fold()
    found = stage.look()
    assert found.decision is not None
    assert (found.decision.control, found.decision.fell) == (Control.CONCURRENT, True)


@pytest.mark.parametrize("what", ["nothing", "base"])
def test_without_a_promotion_nobody_is_watched(shop: Shop, tmp_path: Path, clock: SetClock, what: str) -> None:
    if what == "base":
        Shelf(tmp_path, shop.database, clock).active_base()
    found = monitor.look(shop.database, shop.settings)
    assert (found.decision, found.previous) == (None, None)
    assert found.idle == {"nothing": "no base is active", "base": "the last move of the pointer was no promotion"}[what]
