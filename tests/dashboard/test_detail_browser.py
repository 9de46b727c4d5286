"""The pages of adapters, users, items and the catalogue in a real browser."""

import re
from collections.abc import Callable

import httpx
import pytest

from service.access.schemas import Scope
from service.adapters import service as registry
from service.adapters.moves import MoveRequest
from service.kit.clock import utc_now
from tests import worlds
from tests.dashboard.browser import FAINT, PHONE, Watched
from tests.dashboard.stage import Stage
from tests.dashboard.test_browser import browser, see, stage, visit  # noqa: F401  # fixtures

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

USER = "u05"


def shop(stage: Stage) -> None:  # noqa: F811
    """Some lists and events: one that names its list, one that does not."""
    headers = {"Authorization": f"Bearer {stage.token(Scope.ADMIN)}"}
    with httpx.Client(base_url=stage.url, headers=headers, timeout=60) as client:
        for number in range(8):
            client.get(f"/v1/users/u{number:02d}/recommendations").raise_for_status()
        given = client.get(f"/v1/users/{USER}/recommendations").json()
        first, second = (item["item_id"] for item in given["items"][:2])
        now = utc_now()
        events = [
            worlds.event("x1", USER, first, now, recommendation_id=given["recommendation_id"], position=1),
            worlds.event("x2", USER, second, now, "buy", value=2),
        ]
        client.post("/v1/events", json={"events": events}).raise_for_status()
        fresh = [{"item_id": "fresh", "title": "قبعة <b>bold</b>", "brand": "Acme", "categories": ["kettle"]}]
        client.put("/v1/items", json={"items": fresh}).raise_for_status()


def test_an_adapter_is_found_in_its_lineage_read_and_compared(stage: Stage, visit: Callable[..., Watched]) -> None:  # noqa: F811
    learnt = [stage.learn(number) for number in (1, 2)]
    newer = learnt[-1].candidate_version or ""
    registry.rollback(stage.database, utc_now, stage.app.state.services.artifacts, MoveRequest("cli"))
    stage.learn(3)  # from the older one, so the lineage branches
    shop(stage)
    watched = visit()
    page = watched.page
    page.get_by_role("link", name="Adapters", exact=True).click()
    page.get_by_role("heading", name="Lineage").wait_for()
    assert page.locator("nav a[aria-current=page]").inner_text() == "Adapters"
    assert page.locator("svg.lineage .ring").count() == 1
    assert page.locator("svg.lineage path.rollback").count() == 1
    columns = {circle.get_attribute("cx") for circle in page.locator("svg.lineage circle.node").all()}
    assert len(columns) == 2
    watched.shot("adapters", full_page=True)
    page.get_by_text("As a table").click()
    row = page.locator("#lineage-scroll tbody tr", has_text=newer).first
    assert "promoted by its window" in row.inner_text()

    page.locator("svg.lineage a", has_text=newer).click()
    page.get_by_role("heading", name=newer).wait_for()
    see(watched, "every byte is what was registered")
    assert page.locator("svg.heat .cell").count() == 2 * 7
    cell = page.locator("svg.heat .cell").first.locator("text").inner_html()
    assert re.fullmatch(r"[\d.]+ %", cell)
    page.locator("section[aria-labelledby=movement] summary").click()
    assert cell in page.locator("section[aria-labelledby=movement] table").inner_text()
    page.locator("section[aria-labelledby=movement] summary").click()

    page.get_by_label("Users to compare for").fill(f"{USER}\nu06")
    page.get_by_role("button", name="Compare with what serves").click()
    see(watched, "on average over 2 users")
    assert page.locator("details.compared").count() == 2
    assert page.locator("details.compared").first.locator("tbody tr").count() >= 10
    watched.shot("adapter", full_page=True)
    watched.open(page.url.removeprefix(stage.url))  # of what the form answered, opened anew
    page.get_by_role("heading", name=newer).wait_for()
    assert not page.url.endswith("/compare")
    see(watched, "on average over 2 users")


def test_a_user_is_looked_up_and_leads_to_an_item_and_back(stage: Stage, visit: Callable[..., Watched]) -> None:  # noqa: F811
    stage.learn(1)
    shop(stage)
    watched = visit(scope=Scope.READ)
    page = watched.page
    page.get_by_role("link", name="Users", exact=True).click()
    page.get_by_label("User id").fill(USER)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name=f"User {USER}").wait_for()
    see(watched, "taken from this list")
    see(watched, "taken later")
    assert page.locator("section[aria-labelledby=now] ol li").count() >= 5
    watched.shot("user", full_page=True)

    page.locator("section[aria-labelledby=past] a").first.click()
    page.get_by_role("heading", name="How often it is recommended").wait_for()
    see(watched, "of 9 lists")
    see(watched, "Semantic ID")
    watched.shot("item", full_page=True)
    page.locator("section[aria-labelledby=often] td a", has_text=USER).first.click()
    page.get_by_role("heading", name=f"User {USER}").wait_for()


def test_an_item_is_searched_and_the_catalogue_shows_its_health(stage: Stage, visit: Callable[..., Watched]) -> None:  # noqa: F811
    shop(stage)
    watched = visit(scope=Scope.READ)
    page = watched.page
    page.get_by_role("link", name="Items", exact=True).click()
    page.get_by_label("Item id, or how its id or title begins").fill("قبعة")
    page.get_by_role("button", name="Search").click()
    page.locator("section[aria-labelledby=results] tbody a", has_text="<b>bold</b>").click()
    page.get_by_role("heading", name="<b>bold</b>").wait_for()
    see(watched, "Acme")
    page.get_by_role("link", name="Catalogue", exact=True).click()
    page.get_by_role("heading", name="How the codes are used").wait_for()
    assert page.locator("svg.strip path.bars").count() == 4
    see(watched, "of 256 codes used")
    page.locator("section[aria-labelledby=new]").get_by_text("قبعة").wait_for()
    watched.shot("catalogue", full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark", "phone"])
def test_the_pages_are_readable_everywhere_and_without_scripts(
    stage: Stage,  # noqa: F811
    visit: Callable[..., Watched],  # noqa: F811
    scheme: str,
) -> None:
    version = stage.learn(1).candidate_version
    shop(stage)
    options = {"viewport": PHONE, "has_touch": True} if scheme == "phone" else {"color_scheme": scheme}
    watched = visit(java_script_enabled=scheme != "light", **options)
    for path in (
        "/dashboard/adapters",
        f"/dashboard/adapters/{version}",
        f"/dashboard/adapters/{stage.built.adapter_version}",
        "/dashboard/users",
        f"/dashboard/users?user_id={USER}",
        "/dashboard/items?q=red",
        "/dashboard/items?item_id=i03",
        "/dashboard/catalogue",
    ):
        watched.open(path)
        for summary in watched.page.locator("summary").all():
            summary.click()
        assert watched.page.evaluate(FAINT) == [], path
        assert watched.wide() <= 0, path
        if scheme != "light":
            watched.shot(f"{path.split('/')[2].partition('?')[0]}-{scheme}", full_page=True)
