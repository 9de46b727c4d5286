"""Filters, diversity, exploration and anonymous sessions over the real application, against the referee's scores."""

import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.recommend import exploration
from service.recommend.schemas import Filters, RecommendationRequest
from service.settings import FilterMode, Settings
from tests import worlds
from tests.built import BuiltWorld
from tests.recommend.shop import Reply, Shop, exact, ids, ladder

KETTLES, LAMPS, CHAIRS = ([worlds.item_id(8 * n + i) for i in range(8)] for n in range(3))
WALK = ["i17", "i18", "i19"]  # chairs


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return exact(database_url, tmp_path / "home")


@pytest.fixture
def shop(app: FastAPI, admin: TestClient, built_world: BuiltWorld) -> Shop:
    return Shop.serving(app, admin, built_world)


def brand(shop: Shop, **of: str) -> None:
    """Give items a brand."""
    wanted = [item | {"brand": of[item["item_id"]]} for item in worlds.items() if item["item_id"] in of]
    shop.client.put("/v1/items", json={"items": wanted}).raise_for_status()
    name = next(iter(of.values())).casefold()
    worlds.eventually(lambda: len(shop.index.rows_by_brand.get(name, ())) > 0)


def scores(shop: Shop, history: list[str]) -> dict[str, float]:
    """The referee's, of every item that is not in the history."""
    found = shop.referee(shop.built.adapter_version, history)
    return {item: score for item, score in found.items() if item not in history}


def best(found: dict[str, float], limit: int) -> list[str]:
    return sorted(found, key=lambda item: -found[item])[:limit]


# Filters


def test_filters_give_the_referees_best_of_what_meets_them(shop: Shop) -> None:
    brand(shop, i08="Acme", i09="acme", i01="ACME", i30="Other")
    referee = scores(shop, WALK)
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"category": "LAMP"}, LAMPS),
        ({"categories": ["kettle", "Lamp", "submarine"]}, [*KETTLES, *LAMPS]),
        ({"brand": "aCME"}, ["i01", "i08", "i09"]),
        ({"brand": "acme", "category": "lamp"}, ["i08", "i09"]),
        ({"brand": "acme", "categories": ["chair", "kettle"]}, ["i01"]),
        ({"item_ids": ["i39", "i02", "i02", "unheard-of", "i08"]}, ["i39", "i02", "i08"]),
        ({"item_ids": ["i39", "i02", "i08"], "category": "lamp"}, ["i08"]),
        ({"category": "submarine"}, []),
        ({"category": "lamp", "categories": ["kettle"]}, []),
    ]
    for filters, matching in cases:
        reply = shop.ask(history=WALK, filters=filters, limit=5)
        assert ids(reply) == best({item: referee[item] for item in matching}, 5), filters
        assert ladder(reply) == ("personalised", None)
        assert {item["filtered"] for item in reply["items"]} <= {True}
        assert (reply["filters_applied"], reply["missing"]) == ("strict", 5 - len(reply["items"]))


def test_filters_hold_for_a_stranger_too(shop: Shop) -> None:
    reply = shop.ask(user_id="stranger", filters={"categories": ["lamp", "kettle"]}, limit=100)
    assert sorted(ids(reply)) == sorted([*KETTLES, *LAMPS])
    popular = shop.ask(user_id="stranger", limit=100)
    assert ids(reply) == [item for item in ids(popular) if item in {*KETTLES, *LAMPS}]
    assert (ladder(reply), reply["missing"]) == (("popular", "no_history"), 84)


def test_seen_and_excluded_items_do_not_meet_a_filter_and_unavailable_ones_never_do(shop: Shop) -> None:
    shop.client.delete("/v1/items/i20").raise_for_status()
    asked: dict[str, Any] = {"history": WALK, "filters": {"category": "chair"}, "exclude_item_ids": ["i21"]}
    left = set(CHAIRS) - {*WALK, "i20", "i21"}
    assert set(ids(shop.ask(**asked))) == left
    assert set(ids(shop.ask(**asked, include_seen=True))) == left | set(WALK)


@pytest.mark.parametrize("asked", [{"history": WALK}, {"user_id": "stranger"}])
def test_relaxed_filters_fill_the_list_behind_what_meets_them(shop: Shop, asked: dict[str, Any]) -> None:
    everything = ids(shop.ask(**asked, limit=100))
    reply = shop.ask(**asked, filters={"category": "lamp"}, filter_mode="relaxed", limit=12)
    assert ids(reply) == [i for i in everything if i in LAMPS] + [i for i in everything if i not in LAMPS][:4]
    assert [item["filtered"] for item in reply["items"]] == [True] * 8 + [False] * 4
    assert [item["rank"] for item in reply["items"]] == list(range(1, 13))
    assert (reply["filters_applied"], reply["missing"]) == ("relaxed", 0)

    enough = shop.ask(**asked, filters={"category": "lamp"}, filter_mode="relaxed", limit=5)
    assert (enough["filters_applied"], set(ids(enough)) - set(LAMPS)) == ("strict", set())
    none = shop.ask(**asked, filters={"category": "submarine"}, filter_mode="relaxed", limit=5)
    assert (ids(none), none["filters_applied"]) == (everything[:5], "relaxed")


def test_a_list_that_ends_with_the_catalogue_says_how_many_are_missing(shop: Shop) -> None:
    assert shop.ask(history=WALK, limit=100)["missing"] == 100 - (worlds.ITEMS - 3)
    assert shop.ask(history=WALK, limit=100)["filters_applied"] is None
    assert "filtered" not in shop.ask(history=WALK)["items"][0]


# Diversity


def spread(found: dict[str, float], kind: dict[str, int], diversity: float) -> list[str]:
    """Choose one item after the other: each better one of its kind makes an item (1 - diversity) times as likely."""
    chosen: list[str] = []
    while len(chosen) < len(found):
        left = [item for item in found if item not in chosen]
        taken = {item: sum(kind[other] == kind[item] for other in chosen) for item in left}
        if diversity == 1:
            chosen.append(min(left, key=lambda item: (taken[item], -found[item])))
        else:
            chosen.append(max(left, key=lambda item: found[item] + taken[item] * math.log(1 - diversity)))
    return chosen


@pytest.mark.parametrize("diversity", [0.2, 0.6, 0.95, 1])
def test_a_spread_list_is_the_one_that_is_chosen_item_by_item(shop: Shop, diversity: float) -> None:
    index = shop.index
    kind = {item.item_id: int(index.codes[row, 0]) for row, item in enumerate(index.items)}
    referee = scores(shop, WALK)
    expected = spread(referee, kind, diversity)
    for limit in (1, 10, 37):
        reply = shop.ask(history=WALK, diversity=diversity, limit=limit)
        assert ids(reply) == expected[:limit]
        assert [i["score"] for i in reply["items"]] == pytest.approx([referee[i] for i in ids(reply)], abs=1e-4)
    lamps = shop.ask(history=WALK, diversity=diversity, filters={"category": "lamp"})
    assert ids(lamps) == spread({item: referee[item] for item in LAMPS}, kind, diversity)


def test_a_spread_list_of_popular_items_is_chosen_in_the_same_way(shop: Shop) -> None:
    index = shop.index
    kind = {item.item_id: int(index.codes[row, 0]) for row, item in enumerate(index.items)}
    plain = shop.ask(user_id="stranger", limit=100)
    weight = {item["item_id"]: math.log(item["score"]) for item in plain["items"]}
    assert ids(shop.ask(user_id="stranger", limit=12, diversity=0.6)) == spread(weight, kind, 0.6)[:12]


def test_no_diversity_is_the_list_as_it_is(shop: Shop) -> None:
    assert shop.ask(history=WALK, diversity=0)["items"] == shop.ask(history=WALK)["items"]


# Exploration


def grown(shop: Shop) -> list[str]:
    """Three items that nobody has taken yet, encoded and counted."""
    new = [{"item_id": f"new{n}", "title": f"golden {thing}"} for n, thing in enumerate(("kettle", "lamp", "chair"))]
    shop.client.put("/v1/items", json={"items": new}).raise_for_status()
    worlds.eventually(lambda: {"new0", "new1", "new2"} <= set(ids(shop.ask(history=WALK, limit=100))), 20)
    worlds.eventually(lambda: shop.ask(user_id="stranger")["items"][0]["score"] == 1)
    return [item["item_id"] for item in new]


def explored(reply: Reply) -> list[str]:
    return [item["item_id"] for item in reply["items"] if item["exploration"]]


def test_a_share_of_the_list_goes_to_the_cold_items_that_the_model_likes_best(shop: Shop) -> None:
    cold = grown(shop)
    plain = ids(shop.ask(history=WALK, limit=100))
    by_model = [item for item in plain if item in cold]
    reply = shop.ask(history=WALK, limit=10, exploration=0.2)
    first = plain[:8]
    expected = [item for item in by_model if item not in first][:2]
    assert explored(reply) == expected == ids(reply)[10 - len(expected) :]
    assert ids(reply)[: 10 - len(expected)] == [i for i in plain if i not in expected][: 10 - len(expected)]
    falling = [item["score"] for item in reply["items"]]
    assert falling == sorted(falling, reverse=True)
    lamps = shop.ask(history=WALK, limit=4, exploration=0.5, filters={"category": "lamp"})
    assert explored(lamps) == []  # none of the cold ones is a lamp, and nothing else comes in its place
    assert len(lamps["items"]) == 4


def test_everything_can_be_explored_and_what_is_left_is_filled(shop: Shop) -> None:
    cold = grown(shop)
    reply = shop.ask(history=WALK, limit=10, exploration=1)
    assert sorted(explored(reply)) == cold
    assert len(set(ids(reply))) == 10
    stranger = shop.ask(user_id="stranger", limit=10, exploration=1)
    assert (sorted(explored(stranger)), len(set(ids(stranger)))) == (cold, 10)


def test_an_item_stops_being_cold_when_it_has_been_taken_often_enough(shop: Shop) -> None:
    cold = grown(shop)
    last = worlds.START + timedelta(minutes=30)
    shop.send(*(worlds.event(f"took-{n}", f"taker{n}", "new0", last) for n in range(5)))
    worlds.eventually(lambda: sorted(explored(shop.ask(history=WALK, exploration=1))) == cold[1:])


def test_without_exploration_nothing_is_marked(shop: Shop) -> None:
    assert all("exploration" not in item for item in shop.ask(history=WALK, exploration=0)["items"])
    assert all("exploration" not in item for item in shop.ask(history=WALK)["items"])


def test_the_coin_of_an_id_always_falls_the_same_way_and_the_share_is_kept_over_many() -> None:
    names = [f"r-{n}" for n in range(2000)]
    found = [exploration.slots(name, 0.15, 10) for name in names]
    assert found == [exploration.slots(name, 0.15, 10) for name in names]
    assert set(found) == {1, 2}
    assert sum(found) / len(found) == pytest.approx(1.5, abs=0.05)
    assert {exploration.slots(name, share, 10) for name in names for share in (0.3, 1.0)} == {3, 10}
    assert exploration.slots("r", 0.0, 10) == 0


# What the settings say


def test_the_settings_decide_what_a_request_leaves_open_where_it_matters() -> None:
    filtered = RecommendationRequest(filters=Filters(brand="acme"))
    open_ = filtered.resolved(FilterMode.RELAXED, 0.25)
    assert (open_.filter_mode, open_.exploration) == ("relaxed", 0.25)
    given = filtered.model_copy(update={"filter_mode": FilterMode.STRICT, "exploration": 0.0})
    assert given.resolved(FilterMode.RELAXED, 0.25) == given
    plain = RecommendationRequest()
    assert plain.resolved(FilterMode.RELAXED, 0.0) is plain


# Anonymous sessions


def test_a_session_without_a_user_is_its_history_repeats_and_titles_included(shop: Shop) -> None:
    once = shop.ask(history=["i17", "i18", "i19"], limit=40, include_seen=True)
    again = shop.ask(history=["i17", "i18", "i17", "i18", "i19"], limit=40, include_seen=True)
    assert [i["score"] for i in once["items"]] != [i["score"] for i in again["items"]]
    referee = shop.referee(shop.built.adapter_version, ["i17", "i18", "i17", "i18", "i19"])
    assert ids(again) == best(referee, 40)
    assert all(item["title"] for item in again["items"])
    assert "unknown_history" not in once


def test_items_of_a_given_history_that_are_unknown_are_named(shop: Shop) -> None:
    reply = shop.ask(history=["nobody", "i17", "unheard-of", "nobody"])
    assert reply["unknown_history"] == ["nobody", "unheard-of"]
    assert ladder(reply) == ("personalised", None)
    nothing = shop.ask(history=["nobody"])
    assert (nothing["unknown_history"], ladder(nothing)) == (["nobody"], ("popular", "history_unknown"))


def test_an_anonymous_id_is_a_user_like_any_other(shop: Shop) -> None:
    shop.send(*(worlds.event(f"s-{i}", "session:4f1c", item, worlds.START) for i, item in enumerate(WALK)))
    assert ids(shop.ask(user_id="session:4f1c")) == ids(shop.ask(history=WALK))


# What is refused


def test_a_wrong_choice_is_refused_and_its_place_named(admin: TestClient) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"diversity": 1.1}, "/diversity"),
        ({"diversity": -0.1}, "/diversity"),
        ({"diversity": "much"}, "/diversity"),
        ({"exploration": 2}, "/exploration"),
        ({"filter_mode": "loose"}, "/filter_mode"),
        ({"filters": {"categories": []}}, "/filters/categories"),
        ({"filters": {"categories": ["a"] * 101}}, "/filters/categories"),
        ({"filters": {"categories": [""]}}, "/filters/categories/0"),
        ({"filters": {"brand": ""}}, "/filters/brand"),
        ({"filters": {"item_ids": []}}, "/filters/item_ids"),
        ({"filters": {"item_ids": ["i"] * 10_001}}, "/filters/item_ids"),
        ({"filters": {"item_ids": ["a\u0000"]}}, "/filters/item_ids/0"),
        ({"filters": {"available_only": True}}, "/filters/available_only"),
    ]
    for body, pointer in wrong:
        reply = admin.post("/v1/recommendations", json=body)
        assert (reply.status_code, reply.headers["content-type"]) == (422, "application/problem+json"), body
        assert pointer in [error["pointer"] for error in reply.json()["errors"]], body
