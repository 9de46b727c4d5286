"""The dashboard in a real browser: watched while windows close, changed by hand, read without scripts, in the dark, on
a phone, by keyboard, and while the database does not answer."""

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.engine import make_url

from service.access.schemas import Scope
from service.access.service import AccessService
from service.adapters import repository
from service.adapters.states import AdapterState
from service.kit.clock import utc_now
from tests import worlds
from tests.built import BuiltWorld
from tests.conftest import PostgresStore
from tests.dashboard.browser import FAINT, PATIENCE_MS, PHONE, SCREENSHOTS, Watched, chromium
from tests.dashboard.stage import Stage
from tests.proxies import PausableProxy, pausable

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PAGES = ("/dashboard", "/dashboard/windows", "/dashboard/windows/2", "/dashboard/quality")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def visit(browser: Any, stage: Stage) -> Iterator[Callable[..., Watched]]:
    """Opens a page that is logged in; at the end none may have complained."""
    opened: list[Watched] = []

    def visit(*, log_in: bool = True, scope: Scope = Scope.ADMIN, **options: Any) -> Watched:
        watched = Watched(browser, stage.url, **options)
        opened.append(watched)
        if log_in:
            watched.log_in(stage.token(scope))
        return watched

    yield visit
    for watched in opened:
        watched.close()


@pytest.fixture
def stage(tmp_path: Path, _sqlite_template: Path, built_world: BuiltWorld) -> Iterator[Stage]:
    """On SQLite."""
    shutil.copy(_sqlite_template, tmp_path / "adaptide.db")
    made = Stage(tmp_path, f"sqlite:///{tmp_path / 'adaptide.db'}", built_world)
    yield made
    made.close()


def see(watched: Watched, text: str, where: str = "main") -> None:
    """Wait until the page says so."""
    watched.page.locator(where).get_by_text(text).first.wait_for()


def move(watched: Watched, label: str, version: str, *, reason: str = "") -> None:
    """Promote or roll back as a person does."""
    page = watched.page
    details = page.locator(f"details.move:has(input[value='{version}'])").filter(has_text=label).first
    details.locator("summary").click()
    details.get_by_label("to confirm").fill(version)
    details.get_by_label("Reason").fill(reason)
    details.get_by_role("button").click()
    page.get_by_role("heading", name="Overview").wait_for()


class Shoppers:
    """Some traffic, so that there is something to see."""

    def __init__(self, stage: Stage, since: datetime) -> None:
        """since: when their first event occurs."""
        self._since = since
        self._client = httpx.Client(
            base_url=stage.url, headers={"Authorization": f"Bearer {stage.token(Scope.ADMIN)}"}, timeout=30
        )
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Shoppers":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(60)
        self._client.close()

    def _run(self) -> None:
        number = 0
        while not self._ended.wait(0.04):
            number += 1
            user = f"u{number % worlds.USERS:02d}" if number % 11 else f"new{number}"
            self._client.get(f"/v1/users/{user}/recommendations")
            if number % 3 == 0:
                at = self._since + timedelta(seconds=number)
                event = worlds.event(f"live-{number}", f"u{number % 7:02d}", worlds.item_id(number), at)
                self._client.post("/v1/events", json={"events": [event]})


def test_who_watches_sees_a_window_close_and_its_adapter_serve_then_rolls_back_and_promotes(
    stage: Stage, visit: Callable[..., Watched]
) -> None:
    first = stage.built.adapter_version
    watched = visit()
    page = watched.page
    see(watched, first, "#now")
    before = page.evaluate("performance.timeOrigin")

    window = stage.learn(1)
    second = window.candidate_version
    assert (window.verdict, stage.active()) == ("promoted", second)
    assert second is not None
    page.locator("#now dd", has_text=second).first.wait_for()
    page.locator("#registry tr", has_text=second).get_by_text("active").wait_for()
    page.locator("#registry tr", has_text=second).get_by_text("promoted").wait_for()
    assert page.locator("#announce").inner_text() == f"{second} serves"  # to whom does not see it
    assert page.evaluate("performance.timeOrigin") == before  # the page was never loaded anew

    move(watched, "Roll back", first, reason="tried by a test")
    assert stage.active() == first
    page.locator("#now dd", has_text=first).first.wait_for()
    page.locator("#registry tr", has_text=second).get_by_text("retired").wait_for()

    move(watched, "Promote", second)
    assert stage.active() == second
    page.locator("#registry tr", has_text=second).get_by_text("active").wait_for()


def test_a_window_is_shown_with_its_charts_and_how_its_subjects_ranked(
    stage: Stage, visit: Callable[..., Watched]
) -> None:
    learnt = [stage.learn(number, users=60 if number % 2 else 40) for number in range(1, 6 if SCREENSHOTS else 3)]
    watched = visit()
    page = watched.page
    page.get_by_role("link", name="Windows", exact=True).click()
    page.get_by_role("heading", name="Timeline").wait_for()
    assert page.locator("nav a[aria-current=page]").inner_text() == "Windows"
    for window in learnt:
        page.locator("#windows-part tbody tr", has_text=window.candidate_version or "").first.wait_for()
    charts = page.locator("figure.chart")
    assert charts.count() == 4
    for number in range(4):
        charts.nth(number).locator("canvas").wait_for()
    charts.first.locator("summary").click()
    scored = charts.first.get_by_role("row", name=re.compile(f"^{learnt[-1].window_id} "))
    candidate = next(found for found in learnt[-1].evaluations if found.subject == "candidate")
    assert f"{candidate.ndcg_10:.4f}" in scored.inner_text()
    charts.first.locator("summary").click()
    watched.shot("windows", full_page=True)

    page.get_by_role("link", name=str(learnt[-1].window_id), exact=True).first.click()
    page.get_by_role("heading", name=f"Window {learnt[-1].window_id}").wait_for()
    for subject in ("candidate", "incumbent", "base", "popularity"):
        page.locator("#ranking-scroll").get_by_role("rowheader", name=subject).wait_for()
    see(watched, "95 % interval")
    see(watched, "Train")
    page.locator("#epochs canvas").wait_for()
    watched.shot("window", full_page=True)


def test_the_traffic_of_the_last_minute_is_shown(stage: Stage, visit: Callable[..., Watched]) -> None:
    learnt = 5 if SCREENSHOTS else 0  # more to look at
    for number in range(1, learnt + 1):
        stage.learn(number, users=60 if number % 2 else 40)
    with Shoppers(stage, worlds.START + timedelta(days=learnt, minutes=20)):
        watched = visit()
        see(watched, "behind", "#now")
        watched.page.locator("#now .cards").wait_for()
        worlds.eventually(lambda: " ms" in watched.page.locator("#now .cards").inner_text(), 60)
        see(watched, "Answered by:")
        if SCREENSHOTS:
            time.sleep(45)
            dark = visit(color_scheme="dark")
            for one, name in ((watched, "overview"), (dark, "overview-dark")):
                one.shot(name, full_page=True)
            visit(viewport=PHONE).shot("overview-phone")


def test_without_scripts_everything_is_read_and_changed_all_the_same(
    stage: Stage, visit: Callable[..., Watched]
) -> None:
    window = stage.learn(1)
    second = window.candidate_version
    assert second is not None
    watched = visit(java_script_enabled=False)
    page = watched.page
    for text in ("What serves now", second, "How fresh it is", "Traffic of this replica", "Replicas", "promoted"):
        see(watched, text)
    watched.open("/dashboard/windows")
    page.locator("figure.chart summary").first.click()
    assert "NDCG@10" in page.locator("figure.chart").first.inner_text()
    page.locator("figure.chart").first.get_by_role("columnheader", name="candidate", exact=True).wait_for()
    assert not page.locator("canvas").count()
    page.get_by_role("link", name=str(window.window_id), exact=True).click()
    see(watched, "95 % interval")

    watched.open("/dashboard")
    move(watched, "Roll back", stage.built.adapter_version)
    assert stage.active() == stage.built.adapter_version
    move(watched, "Promote", second)
    assert stage.active() == second
    page.get_by_role("button", name="Log out").click()
    page.get_by_role("heading", name="Log in").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_in_light_and_dark(scheme: str, stage: Stage, visit: Callable[..., Watched]) -> None:
    stage.learn(1)
    watched = visit(color_scheme=scheme)
    backs = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    assert (max(watched.page.evaluate(backs)) < 128) == (scheme == "dark")
    for path in (*PAGES, "/dashboard/login"):
        watched.open(path)
        assert watched.page.evaluate(FAINT) == [], path


def test_on_a_phone_no_page_is_wider_than_the_screen(stage: Stage, visit: Callable[..., Watched]) -> None:
    stage.learn(1)
    watched = visit(viewport=PHONE, has_touch=True)
    for path in (*PAGES, "/dashboard/login"):
        watched.open(path)
        for summary in watched.page.locator("summary").all():
            summary.click()
        watched.page.wait_for_timeout(200)  # charts follow the width
        assert watched.wide() <= 0, path


def test_the_keyboard_alone_logs_in_and_promotes(stage: Stage, visit: Callable[..., Watched]) -> None:
    second = stage.learn(1).candidate_version
    first = stage.built.adapter_version
    watched = visit(log_in=False)
    page, press = watched.page, watched.page.keyboard.press

    def tab_to(found: str) -> None:
        for _ in range(80):
            if page.evaluate(found):
                ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert ring != "none"  # one sees where one is
                return
            press("Tab")
        pytest.fail(f"the keyboard does not lead to where {found}")

    watched.open("/dashboard")
    page.wait_for_function("document.activeElement.name === 'key'")  # by itself, after the first paint
    page.keyboard.type(stage.token(Scope.ADMIN))
    press("Enter")
    page.get_by_role("heading", name="Overview").wait_for()
    press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    tab_to(f"document.activeElement.closest('details')?.id === 'promote-{first}'")
    press("Enter")
    tab_to("document.activeElement.name === 'confirmation'")
    page.keyboard.type(first)
    tab_to("document.activeElement.name === 'reason'")
    tab_to("document.activeElement.type === 'submit'")
    press("Enter")
    page.locator("#registry tr", has_text=first).get_by_text("active").wait_for()
    assert stage.active() == first != second


def test_what_is_looked_at_stays_while_its_part_is_refreshed(stage: Stage, visit: Callable[..., Watched]) -> None:
    stage.learn(1)
    watched = visit(viewport=PHONE)
    page = watched.page
    page.evaluate("document.getElementById('replicas-scroll').scrollLeft = 40")
    page.locator("#replicas-scroll").focus()
    before = page.locator("#now > p.note").last.inner_text()
    page.wait_for_function(
        "before => [...document.querySelectorAll('#now > p.note')].at(-1).innerText !== before", arg=before
    )
    assert page.evaluate("document.activeElement.id") == "replicas-scroll"
    assert page.evaluate("document.getElementById('replicas-scroll').scrollLeft") == 40

    watched.open("/dashboard/windows")
    page.locator("#chart-1 summary").click()
    second = stage.learn(2).candidate_version
    page.locator("#windows-part tr", has_text=second or "").first.wait_for()
    assert page.locator("#chart-1 details").get_attribute("open") is not None
    assert page.evaluate("document.activeElement.closest('figure').id") == "chart-1"
    page.locator("#chart-1 canvas").wait_for()  # drawn anew


def test_what_is_being_typed_is_not_swept_away_by_what_is_new(stage: Stage, visit: Callable[..., Watched]) -> None:
    stage.learn(1)
    first = stage.built.adapter_version
    watched = visit()
    page = watched.page
    form = page.locator(f"#promote-{first}")
    form.locator("summary").click()
    form.get_by_label("to confirm").fill("half a vers")
    second = stage.learn(2).candidate_version
    assert second is not None
    page.locator("#now dd", has_text=second).first.wait_for()  # the other part goes on
    page.wait_for_timeout(4_000)  # longer than a poll
    assert form.get_by_label("to confirm").input_value() == "half a vers"
    form.get_by_label("to confirm").fill(first)
    form.get_by_role("button").click()
    see(watched, "The revision has moved on")  # it was decided on something else
    assert stage.active() == second


def test_who_is_logged_out_elsewhere_is_led_to_the_login(stage: Stage, visit: Callable[..., Watched]) -> None:
    token = stage.token(Scope.READ)
    watched = visit(log_in=False)
    watched.log_in(token)
    AccessService(stage.database, utc_now).revoke(token.split("_")[1], actor="cli")
    watched.page.get_by_role("heading", name="Log in").wait_for()


def test_a_degraded_replica_says_so_at_once(stage: Stage, visit: Callable[..., Watched]) -> None:
    watched = visit(scope=Scope.READ)
    second = stage.learn(1).candidate_version
    watched.page.locator("#now dd", has_text=second or "").first.wait_for()
    first = stage.built.adapter_version
    for file in (stage.settings.artifacts_dir / "adapters" / first).glob("*.safetensors"):
        file.write_bytes(b"damaged")
    with stage.database.write() as connection:
        pointer = repository.read_pointer(connection, lock=True)
        repository.set_state(connection, first, AdapterState.ACTIVE)
        repository.write_pointer(connection, repository.Pointer(pointer.revision + 1, pointer.base_id, first))
    banner = watched.page.locator(".banner")
    banner.wait_for()
    assert "Degraded" in banner.inner_text()
    assert not watched.page.locator("form[action='/dashboard/promote']").count()  # a reader changes nothing


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 500, "body": "<p>broken</p>"},
        {"status": 200, "body": ""},
        {"status": 200, "body": "<!DOCTYPE html>x"},
    ],
    ids=["an error", "nothing", "a page of a proxy"],
)
def test_a_part_that_is_not_refreshed_stays_and_says_since_when(
    answer: dict[str, Any], stage: Stage, visit: Callable[..., Watched]
) -> None:
    watched = visit()
    page = watched.page
    page.route("**/dashboard/now", lambda route: route.fulfill(content_type="text/html", **answer))
    page.locator("#now.out-of-date").wait_for()
    assert re.match(r"Not up to date since \d\d:\d\d:\d\d UTC", page.locator("#stale").inner_text())
    assert page.locator("#now").get_by_role("heading", name="What serves now").is_visible()
    assert not page.locator("#registry.out-of-date").count()
    page.unroute("**/dashboard/now")
    page.locator("#stale").wait_for(state="hidden")
    assert not page.locator(".out-of-date").count()


@pytest.fixture
def paused(
    tmp_path: Path,
    _postgres: PostgresStore,
    built_world: BuiltWorld,
) -> Iterator[tuple[Stage, PausableProxy]]:
    """A stage on PostgreSQL behind a proxy that can be paused."""
    where = make_url(_postgres.url)
    with pausable(where.host or "127.0.0.1", where.port or 5432) as proxy:
        through = where.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        stage = Stage(tmp_path, _postgres.url, built_world, served_url=through)
        yield stage, proxy
        proxy.go_on()
        stage.close()
    _postgres.reset()


@pytest.mark.postgres
def test_while_the_database_is_paused_the_page_says_since_when_it_is_out_of_date_and_recovers(
    browser: Any, paused: tuple[Stage, PausableProxy]
) -> None:
    stage, proxy = paused
    watched = Watched(browser, stage.url)
    watched.log_in(stage.token(Scope.ADMIN))
    page = watched.page
    note = page.locator("#stale")
    assert not note.is_visible()
    proxy.pause()
    note.wait_for(state="visible")
    assert re.match(r"Not up to date since \d\d:\d\d:\d\d UTC", note.inner_text())
    for part in ("#now", "#registry"):
        page.locator(f"{part}.out-of-date").wait_for()
    assert page.get_by_role("heading", name="What serves now").is_visible()  # no error page took its place
    proxy.go_on()
    note.wait_for(state="hidden", timeout=PATIENCE_MS)
    assert not page.locator(".out-of-date").count()
    watched.close()
