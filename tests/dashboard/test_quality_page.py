"""/dashboard/quality: live figures, the comparison in words, hit rate over time, drift of each window."""

from dataclasses import replace
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.access.schemas import Scope
from service.dashboard.quality_words import POINTS, course_charts, drift_chart, verdict
from service.kit.db import Database
from service.quality import monitor
from service.quality.figures import Counts, Sums
from service.quality.repository import Bucket, Model
from service.quality.schemas import QualityView, WatchView
from service.quality.sequential import Control
from service.quality.service import Quality, read_quality
from service.settings import Settings
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock
from tests.dashboard.test_dashboard import Browser
from tests.dashboard.test_pages import statements
from tests.quality.shown import NOON, Shop, counting, minutes
from tests.quality.test_monitor import Stage


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return counting(database_url, tmp_path / "home")


@pytest.fixture
def browser(app: FastAPI, client: TestClient) -> Browser:
    found = Browser(client, app.state.services.access)
    found.log_in(Scope.READ)
    return found


def test_before_anything_was_recommended_it_says_so(browser: Browser) -> None:
    page = browser.client.get("/dashboard/quality").text
    assert "Nothing was recommended in this time." in page
    assert "Nothing is compared: no base is active." in page


def test_it_shows_each_version_and_that_one_fell(
    browser: Browser, database: Database, clock: SetClock, settings: Settings, tmp_path: Path
) -> None:
    shelf = Shelf(tmp_path, database, clock)
    shelf.artifacts.root = settings.artifacts_dir
    stage = Stage(Shop(database, clock, settings), shelf, clock)
    good, bad = stage.good_then_bad()
    clock.now = NOON + minutes(60)
    browser.log_in(Scope.READ)
    page = browser.client.get("/dashboard/quality").text
    assert f"{bad} fell below {good}" in page
    assert "Nothing is done: ADAPTIDE_ROLLBACK_AUTOMATIC is off." in page
    assert "popular lists of the same hours" in page
    for text in (good, bad, "0.5000", "0.0000", "Hit rate over time"):
        assert text in page
    assert browser.client.get("/dashboard/quality?days=1").status_code == 200
    assert browser.client.get("/dashboard/quality?days=2").status_code == 404


def test_its_buckets_are_read_once_and_by_what_may_take_its_time(
    app: FastAPI, browser: Browser, database: Database, clock: SetClock, settings: Settings, tmp_path: Path
) -> None:
    shelf = Shelf(tmp_path, database, clock)
    shelf.artifacts.root = settings.artifacts_dir
    good, bad = Stage(Shop(database, clock, settings), shelf, clock).good_then_bad()
    clock.now = NOON + minutes(60)
    browser.log_in(Scope.READ)
    app.state.services = replace(app.state.services, prompt=Database("postgresql://nobody@127.0.0.1:1/none"))
    with statements(app) as said:
        page = browser.client.get("/dashboard/quality").text
    assert f"{bad} fell below {good}" in page
    assert len([one for one in said if "FROM quality_buckets" in one]) == 1


def test_a_reading_for_both_finds_what_each_finds_alone(
    database: Database, clock: SetClock, settings: Settings, tmp_path: Path
) -> None:
    shelf = Shelf(tmp_path, database, clock)
    shelf.artifacts.root = settings.artifacts_dir
    Stage(Shop(database, clock, settings), shelf, clock).good_then_bad()
    for since, until in ((None, None), (NOON + minutes(20), None), (NOON + minutes(10), NOON + minutes(30))):
        quality, look = monitor.read_with_look(database, settings, since=since, until=until)
        assert quality == read_quality(database, settings, since=since, until=until)
        assert look == monitor.look(database, settings)


def test_without_a_session_it_leads_to_the_login(client: TestClient) -> None:
    assert client.get("/dashboard/quality", follow_redirects=False).headers["Location"] == "/dashboard/login"


def watch(**changes: object) -> WatchView:
    values = {"serving": "a-2", "previous": "a-1", "automatic": True, "fell": True, "control": Control.NONE}
    return WatchView.model_validate(values | {"at_most": 0.5, "why": "its rate is lower"} | changes)


def test_the_verdict_is_a_sentence() -> None:
    assert verdict(watch()) == "a-2 fell below a-1: its rate is lower. It is rolled back."
    assert verdict(watch(fell=False)) == "a-2 is not known to be worse than a-1: its rate is lower."
    assert verdict(watch(fell=False, control=None, why="nobody serves")) == "Nothing is compared: nobody serves."


def test_many_buckets_are_put_together(database: Database, settings: Settings) -> None:
    look = monitor.Look(monitor.look(database, settings).pointer, None, None, "")
    quality: Quality = read_quality(database, settings)
    view = QualityView.of(quality, look, False).model_copy(update={"watch": watch(serving="a-1", previous=None)})
    by = Model("a-1", "personalised")
    buckets = [
        Bucket(NOON + minutes(n), NOON + minutes(n + 1), by, Counts(Sums(2, n % 2, 2, n % 2, n % 2), gain=1.0))
        for n in range(2 * POINTS)
    ]
    assert course_charts([], view) == []
    view.models = [model for model in QualityView.of(_of(quality, by), look, False).models]
    rate, gain = course_charts(buckets, view)
    assert rate.lines[0].values == [0.25] * POINTS
    assert gain.lines[0].values == [0.5] * POINTS
    assert rate.band is not None
    assert "Each point is 2 buckets." in rate.note


def _of(quality: Quality, by: Model) -> Quality:
    from service.quality.service import Figures

    return Quality(quality.horizon, None, False, [Figures(by, Counts(Sums(1, 1, 1, 1, 1)), 0, NOON, NOON)])


def test_windows_without_drift_are_not_drawn() -> None:
    assert drift_chart([]) is None
