"""The overview and the windows as HTML, on both stores, without an updater or a model."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.access.schemas import Scope
from service.adapters import repository as adapters
from service.adapters.moves import MoveRequest
from service.dashboard.navigation import NAV
from service.kit.db import Database
from service.replicas import repository as replicas
from service.replicas.repository import Replica
from service.settings import Promote, Settings
from service.trials import service as trials
from service.trials.promotion import UPDATER, begin_in
from service.trials.states import EndReason
from service.windows import repository as windows
from service.windows.repository import Evaluation
from service.windows.states import SealedBecause, WindowState
from tests import worlds
from tests.adapters.tiny import Shelf
from tests.conftest import SetClock
from tests.dashboard.test_dashboard import Browser

COMPARISON = {"difference": 0.02, "interval": [0.01, 0.03], "confidence": 0.95, "users": 7}
BY_SCRIPT = {"HX-Request": "true"}


@pytest.fixture
def browser(app: FastAPI, client: TestClient) -> Browser:
    made = Browser(client, app.state.services.access)
    made.log_in(Scope.ADMIN)
    return made


@pytest.fixture
def shelf(tmp_path: Path, database: Database, clock: SetClock, settings: Settings) -> Shelf:
    shelf = Shelf(tmp_path, database, clock)
    shelf.artifacts.root = settings.artifacts_dir
    return shelf


def get(browser: Browser, path: str, status: int = 200) -> str:
    reply = browser.client.get(path)
    assert reply.status_code == status, reply.text
    return str(reply.text)


def text(page: str) -> str:
    """What a page says, without its tags, in one line."""
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


@contextmanager
def statements(app: FastAPI) -> Iterator[list[str]]:
    """What requests ask the store meanwhile, each statement in one line."""
    engine, said = app.state.services.database.engine, list[str]()

    def note(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        if threading.current_thread().name.startswith("AnyIO"):  # no background thread
            said.append(" ".join(statement.split()))

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield said
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


def insert(database: Database, clock: SetClock, state: WindowState, count: int = 5, **more: Any) -> int:
    """A window of `count` events after the last one."""
    with database.write() as connection:
        after = windows.last_through_seq(connection)
        values: dict[str, Any] = {
            "after_seq": after,
            "through_seq": after + count,
            "events": count,
            "state": state.value,
            "sealed_at": clock(),
            "sealed_because": SealedBecause.COUNT.value,
            "attempts": 1,
        }
        return windows.insert(connection, values | more)


def judged(database: Database, clock: SetClock) -> int:
    """A promoted window with its evaluations."""
    now = clock()
    window_id = insert(
        database,
        clock,
        WindowState.PROMOTED,
        verdict="promoted",
        started_at=now,
        finished_at=now + timedelta(seconds=90),
        steps=[{"step": "fit", "seconds": 1.25, "outcome": "adapted"}],
        statistics={"users": 7, "losses": [3.0, 2.0], "validation_loss": [[2, 2.5]], "gradient_ratio": [0.1, 0.2]},
    )
    with database.write() as connection:
        for subject, ndcg in (("candidate", 0.62), ("incumbent", 0.60), ("base", 0.5), ("popularity", 0.3)):
            comparison = COMPARISON if subject == "candidate" else None
            found = Evaluation(subject, 7, 0.5, 0.75, 0.4, ndcg, comparison=comparison)
            windows.write_evaluation(connection, window_id, found, now)
    return window_id


def test_an_empty_store_has_a_page_that_says_what_to_do(browser: Browser) -> None:
    page = text(browser.page())
    for said in (
        "no model, popular items",
        "No event has been stored yet.",
        "There is none yet: adaptide base build makes the first.",
        "None has been closed yet.",
    ):
        assert said in page
    assert "None has been closed yet." in text(get(browser, "/dashboard/windows"))


def test_freshness_names_what_waits_to_be_learnt(browser: Browser, database: Database, clock: SetClock) -> None:
    worlds.put(database, clock, worlds.items())
    worlds.send(database, clock, list(worlds.walks("a", users=3, length=4, step=1)))
    insert(database, clock, WindowState.PROMOTED, 2)
    insert(database, clock, WindowState.SEALED, 3)
    insert(database, clock, WindowState.FAILED, 1)  # to be tried again
    insert(database, clock, WindowState.FAILED, 1, attempts=99)  # given up
    page = text(get(browser, "/dashboard/now"))
    assert "at most 9 events to be learnt: 5 in the open window, 4 in 2 closed windows" in page
    assert "No model serves here yet; the newest stored event occurred 2026-02-01 00:03:02" in page


def test_the_last_windows_are_on_the_overview_with_verdict_and_why(
    browser: Browser, database: Database, clock: SetClock
) -> None:
    judged(database, clock)
    insert(database, clock, WindowState.REFUSED, verdict="refused", reason="worse_than_incumbent")
    page = text(get(browser, "/dashboard/registry"))
    assert "promoted 5 2026-03-01 12:00:00 count 1 min 30 s – +0.0200 [+0.010, +0.030] Better than what served." in page
    assert "It ranked worse than what serves." in page


def test_windows_are_paged_from_the_newest_to_the_oldest(browser: Browser, database: Database, clock: SetClock) -> None:
    for _ in range(27):
        insert(database, clock, WindowState.NO_CHANGE, verdict="no_change")
    first = get(browser, "/dashboard/windows")
    older = re.search(r'href="(/dashboard/windows\?before=\d+)" rel="next"', first)
    assert older is not None
    last = get(browser, older[1])
    shown = [re.findall(r'href="/dashboard/windows/(\d+)"', page) for page in (first, last)]
    assert [int(found) for page in shown for found in page] == list(range(27, 0, -1))
    assert 'rel="next"' not in last
    assert 'href="/dashboard/windows">Newest' in last
    assert f'hx-get="/dashboard/windows/part?before={older[1].partition("=")[2]}"' in last


def test_a_window_has_a_page_with_its_steps_and_scores(browser: Browser, database: Database, clock: SetClock) -> None:
    window_id = judged(database, clock)
    page = get(browser, f"/dashboard/windows/{window_id}")
    said = text(page)
    for expected in (
        "promoted Better than what served.",
        "+0.0200 , 95 % interval from +0.0100 to +0.0300, 7 users.",
        "candidate – 7 0.5000 0.7500 0.4000 0.6200",
        "popularity – 7 0.5000 0.7500 0.4000 0.3000",
        "Train 1.250 adapted",
    ):
        assert expected in said
    assert "hx-get" not in page  # it is done with: nothing will change


def test_a_window_under_way_asks_for_itself_anew(browser: Browser, database: Database, clock: SetClock) -> None:
    window_id = insert(database, clock, WindowState.TRAINING, steps=[{"step": "fit"}], statistics={})
    page = get(browser, f"/dashboard/windows/{window_id}")
    assert f'hx-get="/dashboard/windows/{window_id}/part"' in page
    assert "Attempt 1 is under way." in text(get(browser, f"/dashboard/windows/{window_id}/part"))
    assert "fit…" in text(get(browser, "/dashboard/windows"))


@pytest.mark.parametrize("path", ["windows/77", "windows/77/part", "windows/0", "windows/x", "windows?before=x"])
def test_a_window_that_is_not_there_is_a_page_that_says_so(browser: Browser, path: str) -> None:
    reply = browser.client.get(f"/dashboard/{path}")
    assert reply.status_code == 404
    assert reply.headers["Content-Type"].startswith("text/html")
    assert "Back to the dashboard" in reply.text


def test_a_part_without_a_session_leads_the_whole_page_to_the_login(browser: Browser) -> None:
    browser.client.cookies.clear()
    for path in ("now", "registry", "windows/part", "windows/1/part"):
        reply = browser.client.get(f"/dashboard/{path}", headers=BY_SCRIPT)
        assert (reply.status_code, reply.headers["HX-Redirect"]) == (401, "/dashboard/login")
        assert "WWW-Authenticate" not in reply.headers  # the browser would ask in its own way
    assert browser.client.get("/dashboard/windows").headers["Location"] == "/dashboard/login"


def test_pages_are_found_by_landmarks_and_the_present_one_is_marked(browser: Browser, shelf: Shelf) -> None:
    shelf.adapter(shelf.active_base(), 0.1)
    for path in ("/dashboard", "/dashboard/windows"):
        page = get(browser, path)
        assert [page.count(mark) for mark in ("<header>", '<nav aria-label="Pages">', '<main id="main"')] == [1, 1, 1]
        assert re.findall(r'href="([^"]+)" aria-current="page"', page) == [path]
        assert page.count("<h1>") == 1
        assert page.count("<table>") == page.count("<caption")
        assert set(re.findall(r"<th (\w+)=", page)) <= {"scope"}
        ids = re.findall(r'\bid="([^"]+)"', page)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'aria-labelledby="([^"]+)"', page)) <= set(ids)


def test_only_pages_that_exist_are_linked(browser: Browser, shelf: Shelf) -> None:
    version = shelf.adapter(shelf.active_base(), 0.1)
    for link in NAV:
        get(browser, link.path)
    assert f'href="/dashboard/adapters/{version}"' in get(browser, "/dashboard/registry")


def test_the_rollback_on_offer_is_one_of_the_pointer_that_is_shown(
    app: FastAPI, browser: Browser, shelf: Shelf
) -> None:
    shelf.adapter(shelf.active_base(), 0.1)
    with statements(app) as said:
        get(browser, "/dashboard/registry")
    assert len([one for one in said if "FROM active_adapter" in one]) == 1


@pytest.mark.parametrize("path", ["", "/now", "/registry", "/windows", "/windows/part", "/quality"])
def test_no_page_counts_the_events_of_the_open_window(
    app: FastAPI, browser: Browser, database: Database, clock: SetClock, path: str
) -> None:
    worlds.send(database, clock, list(worlds.walks("a", users=2, length=3, step=1)))
    with statements(app) as said:
        get(browser, f"/dashboard{path}")
    assert said
    assert [one for one in said if "count(" in one and "FROM events" in one] == []


def test_windows_that_wait_say_for_what_and_a_canary_what_became_of_it(
    app: FastAPI, browser: Browser, database: Database, clock: SetClock, shelf: Shelf, settings: Settings
) -> None:
    candidate = shelf.adapter(shelf.active_base(), 0.1)
    services = app.state.services
    app.state.services = replace(services, settings=settings.model_copy(update={"promote": Promote.CANARY}))
    insert(database, clock, WindowState.CANARY, verdict="canary", candidate_version=candidate)
    waiting = insert(database, clock, WindowState.SEALED)
    with database.write() as connection:
        pointer = adapters.read_pointer(connection, lock=True)
        begin_in(connection, clock, pointer, candidate, 0.25, MoveRequest(UPDATER))
    until = "promoted from 2026-03-02 12:00:00 UTC on"
    for path in ("registry", "windows", f"windows/{waiting}"):
        page = text(get(browser, f"/dashboard/{path}"))
        assert f"It waits for the canary of {candidate}, which is {until} unless it is ended." in page
    page = text(get(browser, "/dashboard/registry"))
    assert f"It held at the gate and is on trial: canary, 25 % of the users. It is {until}." in page
    assert f"{candidate} passed canary" in page  # its state, and that it is on trial
    assert f"{candidate} passed canary" in text(get(browser, "/dashboard/adapters"))
    assert "On trial canary, 25.0 % of the users, since" in text(get(browser, f"/dashboard/adapters/{candidate}"))
    now = text(get(browser, "/dashboard/now"))
    assert f"On trial {candidate} canary 25.0 % of the users" in now
    trials.end(database, clock, MoveRequest("quality-monitor"), EndReason.LIVE_METRIC)
    page = text(get(browser, "/dashboard/registry"))
    assert "Its canary was ended: what users did spoke against it." in page
    assert "It waits for the updater." in page
    assert f"{candidate} passed canary" not in page
    assert "Was on trial its canary was ended: what users did" in text(get(browser, f"/dashboard/adapters/{candidate}"))


def test_a_replica_says_which_candidate_it_holds_or_why_it_does_not(
    browser: Browser, database: Database, clock: SetClock
) -> None:
    assert "On trial" not in text(get(browser, "/dashboard/now"))
    own = {"host": "one", "started_at": clock(), "seen_at": clock()}
    with database.write() as connection:
        replicas.write(connection, Replica("r-1", process=7, trial_version="a000002-0123456789ab", **own))
        replicas.write(connection, Replica("r-2", process=8, trial_trouble="no memory for a second model", **own))
    page = text(get(browser, "/dashboard/now"))
    assert "Serves On trial Revision" in page
    assert "one, 7 ok no model a000002-0123456789ab" in page
    assert "one, 8 ok no model – failed no memory for a second model" in page
