"""The updater counts what is due beside its updates, shows it, and tells replicas of a rollback."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from service.adapters.bus import Change
from service.errors import StoreUnavailable
from service.kit.db import Database
from service.kit.lease_keeper import held
from service.quality import folding
from service.quality.folding import QUALITY_LEASE
from service.settings import Settings
from service.telemetry import AUTOMATIC_ROLLBACKS, REGISTRY
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock
from tests.quality.shown import NOON, Shop, minutes
from tests.quality.test_monitor import Stage
from trainer.quality import QualityWatch


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path / "home",
        database_url=database_url,
        quality_horizon=timedelta(minutes=10),
        quality_bucket=timedelta(minutes=10),
        quality_lateness=timedelta(0),
        rollback_min_recommendations=100,
        rollback_automatic=True,
    )


@pytest.fixture
def stage(database: Database, clock: SetClock, settings: Settings, tmp_path: Path) -> Stage:
    return Stage(Shop(database, clock, settings), Shelf(tmp_path, database, clock), clock)


def shown(name: str, subject: str) -> float | None:
    return REGISTRY.get_sample_value(f"adaptide_quality_{name}", {"subject": subject})


def test_a_worse_version_is_counted_shown_and_rolled_back(stage: Stage) -> None:
    told: list[Change] = []
    good = stage.promote(0.1, 0)
    stage.serve(good, 5, hits=100)
    stage.popular(5)
    bad = stage.promote(0.2, 20)
    stage.serve(bad, 25)
    stage.popular(25, hits=50)
    stage.clock.now = NOON + minutes(45)
    before = AUTOMATIC_ROLLBACKS._value.get()

    watch = QualityWatch(
        stage.database, stage.clock, stage.settings, stage.shelf.artifacts, "me", lambda change: told.append(change)
    )
    watch.look()

    assert stage.pointer().adapter_version == good
    assert told == [Change.POINTER]
    assert AUTOMATIC_ROLLBACKS._value.get() == before + 1
    assert (shown("hit_rate", "serving"), shown("hit_rate", "previous")) == (0.0, 0.5)
    assert (shown("hit_rate", "popular"), shown("recommendations", "popular")) == (0.25, 200)
    watch.look()
    assert told == [Change.POINTER]


def test_what_was_in_the_way_after_counting_is_tried_again(stage: Stage) -> None:
    good = stage.promote(0.1, 0)
    stage.serve(good, 5, hits=100)
    stage.popular(5)
    bad = stage.promote(0.2, 20)
    away: list[bool] = []

    def clock() -> datetime:
        """Fails once all has been counted, as the store may."""
        if away and folding.due(stage.database, stage.clock(), stage.settings) is None:
            raise StoreUnavailable("the store is away")
        return stage.clock()

    watch = QualityWatch(stage.database, clock, stage.settings, stage.shelf.artifacts, "me")
    watch.look()
    stage.serve(bad, 25)
    stage.popular(25)
    stage.clock.now = NOON + minutes(45)
    away.append(True)
    watch.look()
    assert folding.due(stage.database, stage.clock(), stage.settings) is None
    assert stage.pointer().adapter_version == bad
    away.clear()
    watch.look()
    assert stage.pointer().adapter_version == good


def test_nothing_is_asked_of_the_store_while_nothing_is_due(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = QualityWatch(stage.database, stage.clock, stage.settings, stage.shelf.artifacts, "me")
    watch.look()
    monkeypatch.setattr("trainer.quality.held", None)
    watch.look()


def test_only_one_process_counts(stage: Stage) -> None:
    stage.serve(None, -5, shown=1)
    stage.clock.now = NOON + minutes(45)
    watch = QualityWatch(stage.database, stage.clock, stage.settings, stage.shelf.artifacts, "me")
    with held(stage.database, QUALITY_LEASE, "another", stage.settings.lease_duration):
        watch.look()
        assert folding.due(stage.database, stage.clock(), stage.settings) is not None
    watch.look()
    assert folding.due(stage.database, stage.clock(), stage.settings) is None


def test_a_store_that_is_away_is_no_reason_to_end(clock: SetClock, tmp_path: Path) -> None:
    away = Database("postgresql://nobody@127.0.0.1:1/none", lock_timeout_s=1)
    shelf = Shelf(tmp_path, away, clock)
    QualityWatch(away, clock, Settings(home=tmp_path), shelf.artifacts, "me").look()
    away.close()


def test_without_a_horizon_there_is_nothing_to_do(clock: SetClock, tmp_path: Path) -> None:
    away = Database("postgresql://nobody@127.0.0.1:1/none", lock_timeout_s=1)
    QualityWatch(
        away, clock, Settings(home=tmp_path, quality_horizon=None), Shelf(tmp_path, away, clock).artifacts, "me"
    ).look()
