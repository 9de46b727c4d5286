"""Comparing an adapter with what serves, and a user's page, over a real model."""

import re
import threading
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.access.schemas import Scope
from service.kit.db import Database
from service.settings import Settings
from tests import worlds
from tests.built import BuiltWorld
from tests.conftest import SetClock
from tests.dashboard.test_detail_pages import audit, harmless
from tests.dashboard.visits import Shown, Visit
from tests.recommend.shop import Shop, exact, ids


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return exact(database_url, tmp_path / "home", database_answer_timeout=10, request_deadline=10)


@pytest.fixture
def shop(app: FastAPI, admin: TestClient, built_world: BuiltWorld) -> Shop:
    return Shop.serving(app, admin, built_world)


@pytest.fixture
def visit(shop: Shop, app: FastAPI, client: TestClient) -> Visit:
    return Visit(app, client)


def table(page: Shown) -> list[tuple[str, str, str]]:
    """(rank of the other adapter, rank of what serves, item id) of the first user."""
    rows = re.findall(
        r'<tr class="\w+"><td class="number">(\S+)</td><td class="number">(\S+)</td>.*?item_id=(\w+)"',
        page.html,
        flags=re.DOTALL,
    )
    return rows


def test_a_comparison_has_the_lists_of_both_models(visit: Visit, shop: Shop, database: Database) -> None:
    version = shop.adapter(seed=1)
    before = ids(shop.ask(user_id="u00"))
    past = [event["item_id"] for event in shop.client.get("/v1/users/u00/events").json()["events"]]
    scores = shop.referee(version, past[::-1])
    wanted = sorted((i for i in scores if i not in past), key=lambda i: -scores[i])[:10]
    actor = visit.log_in(Scope.ADMIN)
    stored = worlds.row_counts(database)["recommendations"]
    page = visit.post(f"/dashboard/adapters/{version}/compare", users="u00\r\nnobody\r\n")
    assert page.status == 200, page.text
    harmless(page)
    rows = table(page)
    assert [item for other, _, item in rows if other != "–"] == wanted
    assert sorted((int(serves), item) for _, serves, item in rows if serves != "–") == list(enumerate(before, 1))
    assert "on average over 1 user." in page.section("compare")
    assert "without a past that a model can read: nobody" in page.section("compare")
    assert audit(database, "adapter.compare") == [(actor, version)]
    assert [who for who, _ in audit(database, "user.view")] == [actor]  # the one whose past is shown
    assert worlds.row_counts(database)["recommendations"] == stored
    assert f"Top 10 of {version}" in visit.read(f"/dashboard/adapters/{version}").section("compare")  # it is kept
    visit.log_in(Scope.READ)
    assert "textarea" not in visit.read(f"/dashboard/adapters/{version}").html


def test_a_comparison_for_a_user_who_was_erased_is_forgotten(visit: Visit, shop: Shop, clock: SetClock) -> None:
    version = shop.adapter(seed=1)
    key = shop.services.access.create("shop", frozenset({Scope.WRITE}), actor="cli")
    visit.log_in(Scope.ADMIN)
    assert "User u00" in visit.post(f"/dashboard/adapters/{version}/compare", users="u00").text
    headers = {"Authorization": f"Bearer {key.token}"}
    shop.client.delete("/v1/users/u00", headers=headers).raise_for_status()
    page = visit.read(f"/dashboard/adapters/{version}")
    assert "u00" not in page.text
    assert "Top 10" not in page.text
    clock.advance(minutes=1)
    again = visit.post(f"/dashboard/adapters/{version}/compare", users="u00")
    assert "no user with a past" in again.section("compare")


def test_without_names_some_users_of_late_are_compared(visit: Visit, shop: Shop) -> None:
    version = shop.adapter(seed=1)
    visit.log_in(Scope.ADMIN)
    page = visit.post(f"/dashboard/adapters/{version}/compare", users="")
    assert "on average over 5 users." in page.section("compare")


def test_an_adapter_that_is_what_serves_keeps_every_item_in_its_place(visit: Visit, shop: Shop) -> None:
    version = shop.adapter(seed=1)
    served = shop.built.adapter_version
    shop.point_at(version)
    worlds.eventually(lambda: visit.services.serving().adapter_version == version, 30)
    visit.log_in(Scope.ADMIN)
    assert visit.post(f"/dashboard/adapters/{version}/compare").status == 409
    if served is not None:
        page = visit.post(f"/dashboard/adapters/{served}/compare", users="u01")
        assert "on average over 1 user." in page.section("compare")


def test_one_comparison_at_a_time_and_what_serves_goes_on(visit: Visit, shop: Shop) -> None:
    version = shop.adapter(seed=1)
    visit.log_in(Scope.ADMIN)
    go, begun = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        go.wait(60)

    visit.services.details.work.ask("something long", slow, fresh_s=0, wait_s=0)
    assert begun.wait(10)
    first = threading.Thread(
        target=lambda: visit.services.details.comparisons.compare(version, ["u00"], actor="cli"), daemon=True
    )
    first.start()
    worlds.eventually(lambda: visit.services.details.comparisons.latest(version).waiting, 10)
    refused = visit.post(f"/dashboard/adapters/{version}/compare", users="u00")
    assert (refused.status, refused.headers["retry-after"]) == (503, "10")
    assert "another comparison runs" in refused.text
    assert "A comparison runs." in visit.read(f"/dashboard/adapters/{version}").section("compare")
    go.set()
    first.join(30)
    assert visit.services.details.comparisons.latest(version).value is not None
    assert visit.post(f"/dashboard/adapters/{version}/compare", users="u00").status == 200


def test_a_damaged_adapter_is_not_compared_and_the_next_one_is(visit: Visit, shop: Shop) -> None:
    bad, good = shop.adapter(seed=1), shop.adapter(seed=2)
    shop.damage(bad)
    visit.log_in(Scope.ADMIN)
    page = visit.post(f"/dashboard/adapters/{bad}/compare", users="u00")
    assert "The comparison failed" in page.section("compare")
    assert "on average" in visit.post(f"/dashboard/adapters/{good}/compare", users="u00").section("compare")


@pytest.mark.parametrize("users", ["a\nb\nc\nd\ne\nf", "x" * 129, "\x00"])
def test_users_that_cannot_be_compared_are_refused(visit: Visit, shop: Shop, users: str) -> None:
    version = shop.adapter(seed=1)
    visit.log_in(Scope.ADMIN)
    assert visit.post(f"/dashboard/adapters/{version}/compare", users=users).status == 422


def test_a_users_page_says_what_is_recommended_now_and_why(visit: Visit, shop: Shop, database: Database) -> None:
    reply = shop.ask(user_id="u00", explain=True)
    stored = worlds.row_counts(database)["recommendations"]
    visit.log_in(Scope.READ)
    page = visit.read("/dashboard/users", user_id="u00")
    harmless(page)
    now = page.section("now")
    assert re.findall(r"item_id=(\w+)", page.html.partition('id="past"')[0])[:10] == ids(reply)
    assert "personalised" in now
    for item in reply["items"]:
        for reason in item["reasons"]:
            assert reason in now
    assert worlds.row_counts(database)["recommendations"] == stored
