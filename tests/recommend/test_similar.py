"""GET /v1/items/{item_id}/similar: nearest by semantic ID first, and of equals what the referee scores best."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from service.catalog.index import CatalogueIndex, IndexedItem
from service.recommend.schemas import Filters
from service.recommend.similar import rings, shared_levels
from service.settings import Settings
from tests import worlds
from tests.built import BuiltWorld
from tests.recommend.shop import Reply, Shop, exact, ids, ladder


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return exact(database_url, tmp_path / "home")


@pytest.fixture
def shop(app: FastAPI, admin: TestClient, built_world: BuiltWorld) -> Shop:
    return Shop.serving(app, admin, built_world)


def similar(client: TestClient, item: str, **asked: Any) -> Reply:
    reply = client.get(f"/v1/items/{item}/similar", params=asked)
    assert reply.status_code == 200, reply.text
    found: Reply = reply.json()
    return found


def shared(index: CatalogueIndex, one: str, other: str) -> int:
    a, b = (index.items[index.row_of[item]].codes for item in (one, other))
    assert a is not None
    assert b is not None
    return next((level for level in range(4) if a[level] != b[level]), 4)


def test_the_nearest_come_first_and_equals_in_the_referees_order(shop: Shop) -> None:
    for item in ("i05", "i18", "i33"):
        referee = shop.referee(shop.built.adapter_version, [item])
        others = [other for other in referee if other != item]
        expected = sorted(others, key=lambda other: (-shared(shop.index, item, other), -referee[other]))
        for limit in (1, 7, 39):
            reply = similar(shop.client, item, limit=limit)
            assert ids(reply) == expected[:limit]
            assert [i["score"] for i in reply["items"]] == pytest.approx([referee[i] for i in ids(reply)], abs=1e-4)
            assert [i["shared_levels"] for i in reply["items"]] == [shared(shop.index, item, i) for i in ids(reply)]
        assert (ladder(reply), reply["model"]["base"]) == (("personalised", None), shop.built.base_id)
    assert similar(shop.client, "i05", limit=100)["missing"] == 100 - 39


def test_filters_hold_and_available_items_alone_are_shown(shop: Shop) -> None:
    lamps = {worlds.item_id(n) for n in range(8, 16)}
    assert set(ids(similar(shop.client, "i08", limit=100, category="LAMP"))) == lamps - {"i08"}
    nothing = similar(shop.client, "i08", category="submarine")
    assert (nothing["items"], nothing["missing"]) == ([], 10)
    shop.client.delete("/v1/items/i09").raise_for_status()
    worlds.eventually(lambda: "i09" not in ids(similar(shop.client, "i08", limit=100)))


def test_an_unavailable_item_has_similar_ones_and_a_deleted_or_unknown_one_is_not_found(shop: Shop) -> None:
    gone = worlds.items([5])[0] | {"available": False}
    before = ids(similar(shop.client, "i05"))
    shop.client.put("/v1/items", json={"items": [gone]}).raise_for_status()
    worlds.eventually(lambda: "i05" not in ids(similar(shop.client, "i04", limit=100)))
    assert ids(similar(shop.client, "i05")) == before
    shop.client.delete("/v1/items/i05").raise_for_status()
    for item in ("i05", "unheard-of"):
        reply = shop.client.get(f"/v1/items/{item}/similar")
        assert (reply.status_code, reply.headers["content-type"]) == (404, "application/problem+json")
        assert reply.json()["slug"] == "not_found"


def test_before_a_base_shared_categories_and_popularity_decide(admin: TestClient) -> None:
    items = [
        {"item_id": "a", "title": "a", "categories": ["Tea", "Red"]},
        {"item_id": "both", "title": "both", "categories": ["tea", "RED"]},
        {"item_id": "tea", "title": "tea", "categories": ["Tea"]},
        {"item_id": "hot", "title": "hot", "categories": ["tea"]},
        {"item_id": "none", "title": "none"},
        {"item_id": "x/y", "title": "a name with a slash", "categories": ["red"]},
    ]
    admin.put("/v1/items", json={"items": items}).raise_for_status()
    event = worlds.event("e", "u", "hot", worlds.START)
    admin.post("/v1/events", json={"events": [event]}).raise_for_status()
    worlds.eventually(lambda: ids(similar(admin, "a"))[1:2] == ["hot"], 30)
    reply = similar(admin, "a")
    assert ids(reply)[0] == "both"
    assert sorted(ids(reply)[2:4]) == ["tea", "x/y"]
    assert ids(reply)[4:] == ["none"]
    assert [item["shared_categories"] for item in reply["items"]] == [2, 1, 1, 1, 0]
    assert (ladder(reply), reply["model"], reply["missing"]) == (("popular", "no_model"), None, 5)
    assert ids(similar(admin, "x/y"))[:2] == ids(similar(admin, "x%2Fy"))[:2]


def test_a_wrong_question_is_refused(admin: TestClient) -> None:
    wrong = ({"limit": 0}, {"limit": 101}, {"limit": "x"}, {"category": ""}, {"brand": "x" * 301}, {"brand": "a\0"})
    for asked in wrong:
        assert admin.get("/v1/items/a/similar", params=asked).status_code == 422, asked
    assert admin.get(f"/v1/items/{'x' * 129}/similar").status_code == 422


@given(
    st.lists(st.tuples(st.tuples(*[st.integers(0, 2)] * 4), st.booleans(), st.booleans()), min_size=1, max_size=30),
    st.integers(1, 35),
    st.booleans(),
    st.data(),
)
def test_rings_are_those_of_a_count_over_all_items(
    items: list[tuple[tuple[int, int, int, int], bool, bool]], limit: int, filtered: bool, data: st.DataObject
) -> None:
    index = CatalogueIndex(
        tuple(
            IndexedItem(f"i{n}", "", ("own",) if own else (), available, codes)
            for n, (codes, available, own) in enumerate(items)
        ),
        1,
        "b-1",
    )
    row = data.draw(st.integers(0, len(items) - 1))
    filters = Filters(category="OWN") if filtered else Filters()

    found = rings(index, row, limit, filters)

    levels = shared_levels(index, row, np.arange(len(items)))
    left = limit
    expected = []
    for level in (4, 3, 2, 1, 0):
        own = [
            n
            for n, (_, available, has) in enumerate(items)
            if n != row and available and (has or not filtered) and levels[n] == level
        ]
        if own and left > 0:
            expected.append((level, own, left))
            left -= len(own)
    assert [(ring.levels, ring.rows.tolist(), ring.most) for ring in found] == expected
