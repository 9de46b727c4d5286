"""POST /v1/recommendations over the real application with a real base: what is promised, whatever is asked."""

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.access.schemas import Scope
from service.recommend.explain import POPULAR
from service.recommend.tables import recommendations
from service.settings import Settings
from tests import worlds
from tests.built import BuiltWorld
from tests.recommend.shop import Shop, exact, ids, ladder


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return exact(database_url, tmp_path / "home")


@pytest.fixture
def shop(app: FastAPI, admin: TestClient, built_world: BuiltWorld) -> Shop:
    return Shop.serving(app, admin, built_world)


# The ladder


def test_an_empty_catalogue_is_an_empty_list_with_the_reason(admin: TestClient) -> None:
    reply = admin.post("/v1/recommendations", json={"user_id": "u"})
    assert reply.status_code == 200
    assert (reply.json()["items"], ladder(reply.json()), reply.json()["model"]) == ([], ("popular", "no_model"), None)


def test_before_the_first_base_everybody_gets_what_is_popular_and_not_seen(admin: TestClient) -> None:
    admin.put("/v1/items", json={"items": worlds.items(range(4))})
    took = [worlds.event(f"e{n}", f"u{n}", item, worlds.START) for n, item in enumerate(["i02", "i02", "i01"])]
    assert admin.post("/v1/events", json={"events": took}).json()["accepted"] == 3

    def ask(user: str) -> dict[str, Any]:
        found: dict[str, Any] = admin.post("/v1/recommendations", json={"user_id": user, "explain": True}).json()
        return found

    worlds.eventually(lambda: ids(ask("stranger"))[:1] == ["i02"], 30)
    reply = ask("stranger")
    assert ids(reply) == ["i02", "i01", "i00", "i03"]
    assert [item["score"] for item in reply["items"]] == pytest.approx([1, 0.5, 0, 0])
    assert {tuple(item["reasons"]) for item in reply["items"]} == {(POPULAR,)}
    assert ids(ask("u2")) == ["i02", "i00", "i03"]
    assert ladder(reply) == ("popular", "no_model")


def test_a_known_user_gets_personalised_items_from_the_stored_history(shop: Shop) -> None:
    reply = shop.ask(user_id="u00")
    assert ladder(reply) == ("personalised", None)
    assert [item["rank"] for item in reply["items"]] == list(range(1, 11))
    assert all(item["title"] for item in reply["items"])
    history = [e["item_id"] for e in worlds.first_walks() if e["user_id"] == "u00"]
    assert not set(ids(reply)) & set(history)
    assert reply["model"] == {
        "adapter_version": shop.built.adapter_version,
        "base": shop.built.base_id,
        "trained_through": "2026-02-01T00:11:59Z",
    }
    short = shop.client.get("/v1/users/u00/recommendations", params={"limit": 10}).json()
    assert (short["items"], short["model"]) == (reply["items"], reply["model"])
    assert (
        worlds.item_id(int(history[-1][1:]) + 1) in ids(reply)[:3]
    )  # the base has learnt it; how surely depends on the processor


def test_each_rung_below_says_why(shop: Shop) -> None:
    assert ladder(shop.ask(user_id="stranger")) == ("popular", "no_history")
    assert ladder(shop.ask()) == ("popular", "no_history")
    assert ladder(shop.ask(history=[])) == ("popular", "no_history")
    assert ladder(shop.ask(history=["unheard-of"])) == ("popular", "history_unknown")
    for reply in (shop.ask(user_id="stranger"), shop.ask(history=["unheard-of"])):
        assert (len(reply["items"]), reply["model"]) == (10, None)
        scores = [item["score"] for item in reply["items"]]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] == 1


def test_the_base_alone_says_no_adapter(shop: Shop) -> None:
    etag = shop.client.get("/v1/admin/adapters").headers["ETag"]
    body = {"to_version": "base"}
    shop.client.post("/v1/admin/adapters/rollback", json=body, headers={"If-Match": etag}).raise_for_status()
    worlds.eventually(lambda: shop.served() is None)
    reply = shop.ask(history=["i00"])
    assert ladder(reply) == ("base", "no_adapter")
    assert reply["model"]["base"] == shop.built.base_id
    assert reply["model"]["trained_through"] is not None


# What is asked


def test_a_given_history_is_taken_instead_of_the_stored_one(shop: Shop) -> None:
    given = shop.ask(history=["i05", "i06", "i07"])
    assert "i08" in ids(given)[:3]  # the walk goes on; how sure a tiny model is depends on the processor
    assert not {"i05", "i06", "i07"} & set(ids(given))
    seen = {e["item_id"] for e in worlds.first_walks() if e["user_id"] == "u00"}
    both = shop.ask(user_id="u00", history=["i05", "i06", "i07"], limit=100)
    assert not (seen | {"i05", "i06", "i07"}) & set(ids(both))


def test_the_order_of_a_history_counts_and_unknown_items_in_it_do_not(shop: Shop) -> None:
    forward = shop.ask(history=["i05", "i06", "i07"], include_seen=True, limit=40)
    assert ids(shop.ask(history=["i07", "i06", "i05"], include_seen=True, limit=40)) != ids(forward)
    with_unknown = shop.ask(history=["i05", "nobody", "i06", "i07", "unheard-of"], include_seen=True, limit=40)
    assert with_unknown["items"] == forward["items"]


def test_a_long_history_is_as_good_as_its_latest_items(shop: Shop) -> None:
    long = [worlds.item_id(n) for n in range(200)]
    same = shop.ask(history=long, include_seen=True, limit=40)["items"]
    assert same == shop.ask(history=long[-20:], include_seen=True, limit=40)["items"]


def test_exclusions_hold_and_seen_items_come_back_when_asked_for(shop: Shop) -> None:
    asked: dict[str, Any] = {"history": ["i05", "i06", "i07"], "limit": 100}
    everything = ids(shop.ask(**asked, include_seen=True))
    assert sorted(everything) == [worlds.item_id(n) for n in range(worlds.ITEMS)]
    unseen = [item for item in everything if item not in ("i05", "i06", "i07")]
    assert ids(shop.ask(**asked)) == unseen
    fewer = shop.ask(**asked, exclude_item_ids=[*unseen[:5], "unheard-of", unseen[0]])
    assert ids(fewer) == unseen[5:]  # the others keep their order
    assert ids(shop.ask(**asked, exclude_item_ids=everything)) == []
    assert ids(shop.ask(user_id="stranger", exclude_item_ids=everything)) == []


def test_a_limit_of_one_and_one_above_the_catalogue_are_answered(shop: Shop) -> None:
    many = shop.ask(history=["i05"], limit=100)
    assert len(many["items"]) == worlds.ITEMS - 1
    for one in (1, 1.0):  # the same number in JSON
        assert shop.ask(history=["i05"], limit=one)["items"] == many["items"][:1]
    assert len(shop.ask(user_id="stranger", limit=100)["items"]) == worlds.ITEMS


@pytest.mark.parametrize("asked", [{"history": ["i05"]}, {"user_id": "stranger"}])
def test_a_category_leaves_only_its_items_in_any_case(shop: Shop, asked: dict[str, Any]) -> None:
    reply = shop.ask(**asked, limit=100, filters={"category": "LAMP"})
    assert sorted(ids(reply)) == [worlds.item_id(n) for n in range(8, 16)]
    assert shop.ask(**asked, filters={"category": "submarine"})["items"] == []


def test_explanations_name_the_item_of_the_history_that_is_nearest(shop: Shop) -> None:
    assert {item["reasons"] for item in shop.ask(history=["i05"])["items"]} == {None}
    reply = shop.ask(history=["i05", "i06"], explain=True, limit=40, include_seen=True)
    reasons = {i["item_id"]: [r for r in i["reasons"] if r.startswith("close to")] for i in reply["items"]}
    index = shop.index
    for item_id, given in reasons.items():
        own = index.codes[index.row_of[item_id]]
        shared = [int((own == index.codes[index.row_of[past]]).cumprod().sum()) for past in ("i05", "i06")]
        assert len(given) == (max(shared) > 0)
        if given:
            assert f"shares {max(shared)} of 4 semantic levels" in given[0]
    assert "«black kettle»" not in str(reasons["i06"])
    assert "shares 4 of 4" in reasons["i06"][0]


# What is returned


def test_the_search_returns_exactly_the_referees_ranking_with_its_scores(shop: Shop) -> None:
    version = shop.adapter(1)
    shop.point_at(version)
    worlds.eventually(lambda: shop.served() == version)
    for history in (["i05"], ["i30", "i31", "i32", "i33"]):
        reply = shop.ask(history=history, limit=20)
        assert reply["model"]["adapter_version"] == version
        scores = {i: s for i, s in shop.referee(version, history).items() if i not in history}
        assert [item["score"] for item in reply["items"]] == pytest.approx(
            [scores[item["item_id"]] for item in reply["items"]], abs=1e-4
        )
        assert ids(reply) == sorted(scores, key=lambda item: -scores[item])[:20]


def test_a_recommendation_is_stored_and_a_later_event_can_name_it(shop: Shop) -> None:
    reply = shop.ask(user_id="u00", limit=3)
    event = worlds.event("bought", "u00", ids(reply)[1], worlds.START, "purchase")
    shop.send(event | {"recommendation_id": reply["recommendation_id"], "position": 2})
    named = shop.client.get("/v1/users/u00/events", params={"limit": 100}).json()["events"]
    assert reply["recommendation_id"] in {e["recommendation_id"] for e in named}
    with shop.services.database.read() as connection:
        query = sa.select(recommendations).where(recommendations.c.recommendation_id == reply["recommendation_id"])
        row = connection.execute(query).one()
    assert (row.user_id, row.strategy, row.adapter_version) == ("u00", "personalised", shop.built.adapter_version)
    assert row.items == [[item["item_id"], item["score"]] for item in reply["items"]]
    assert row.history == [e["item_id"] for e in worlds.first_walks() if e["user_id"] == "u00"]
    assert row.catalog_revision == shop.index.revision


def test_what_a_user_does_counts_from_the_next_reply_on(shop: Shop) -> None:
    assert ladder(shop.ask(user_id="newcomer")) == ("popular", "no_history")
    shop.send(worlds.event("first", "newcomer", "i11", worlds.START))
    reply = shop.ask(user_id="newcomer", limit=40)
    assert ladder(reply) == ("personalised", None)
    assert "i11" not in ids(reply)
    shop.send(worlds.event("shown", "newcomer", "i12", worlds.START, "impression"))
    assert shop.ask(user_id="newcomer", limit=40)["items"] == reply["items"]  # looking at a list is no interaction


def test_an_erased_user_is_a_stranger_again(shop: Shop) -> None:
    shop.ask(user_id="u00")
    assert shop.client.delete("/v1/users/u00").json() == {"events": 12, "recommendations": 1}
    assert ladder(shop.ask(user_id="u00")) == ("popular", "no_history")


# What changes while it serves


def test_a_new_item_can_be_recommended_without_a_restart(shop: Shop) -> None:
    worlds.eventually(lambda: shop.services.codec() is not None)
    body = {"items": [{"item_id": "new", "title": "golden kettle"}]}
    assert shop.client.put("/v1/items", json=body).json()["created"] == 1
    worlds.eventually(lambda: "new" in ids(shop.ask(history=["i05"], limit=100)))
    assert "new" in ids(shop.ask(user_id="stranger", limit=100))


def test_a_deleted_or_unavailable_item_is_never_recommended_again(shop: Shop) -> None:
    item = worlds.items(range(9, 10))[0]
    shop.client.delete("/v1/items/i08").raise_for_status()
    for asked in ({"history": ["i05", "i06", "i07"]}, {"user_id": "stranger"}):
        found = ids(shop.ask(**asked, limit=100, include_seen=True))
        assert "i08" not in found
        assert len(found) == worlds.ITEMS - 1
    assert ladder(shop.ask(history=["i08"])) == ("personalised", None)  # it still says something about a taste
    shop.client.put("/v1/items", json={"items": [item | {"available": False}]})
    worlds.eventually(lambda: "i09" not in ids(shop.ask(history=["i05"], limit=100)), seconds=1)
    shop.client.put("/v1/items", json={"items": [item]})
    worlds.eventually(lambda: "i09" in ids(shop.ask(history=["i05"], limit=100)), seconds=1)


def test_promote_and_rollback_change_what_the_next_replies_name_and_score_with(shop: Shop) -> None:
    def move(path: str) -> None:
        etag = shop.client.get("/v1/admin/adapters").headers["ETag"]
        shop.client.post(f"/v1/admin/adapters/{path}", headers={"If-Match": etag}).raise_for_status()

    first, second = shop.built.adapter_version, shop.adapter(1)
    assert shop.served() == first
    for path, version in ((f"{second}/promote", second), ("rollback", first)):
        move(path)
        worlds.eventually(lambda version=version: shop.served() == version)
        reply = shop.ask(history=["i05"], limit=40)
        scores = shop.referee(version, ["i05"])
        assert [item["score"] for item in reply["items"]] == pytest.approx([scores[i] for i in ids(reply)], abs=1e-4)


def test_a_damaged_adapter_keeps_the_one_before_it_serving_and_readiness_says_so(shop: Shop) -> None:
    version = shop.adapter(1)
    shop.damage(version)
    shop.point_at(version)

    def engine() -> dict[str, Any]:
        reply = shop.client.get("/health/ready")
        assert reply.status_code == 200
        part: dict[str, Any] = reply.json()["parts"]["engine"]
        return part

    worlds.eventually(lambda: engine()["state"] == "personalised, degraded")
    assert version in engine()["detail"]
    assert shop.served() == shop.built.adapter_version
    assert shop.client.get(f"/v1/admin/adapters/{version}").json()["state"] == "corrupt"


def test_an_adapter_known_to_be_damaged_cannot_be_promoted(shop: Shop) -> None:
    version = shop.adapter(1)
    shop.damage(version)
    etag = shop.client.get("/v1/admin/adapters").headers["ETag"]
    reply = shop.client.post(f"/v1/admin/adapters/{version}/promote", headers={"If-Match": etag})
    assert reply.status_code == 409
    assert "adaptide adapters verify" in reply.json()["detail"]
    assert shop.served() == shop.built.adapter_version


# What is refused


def test_a_wrong_request_is_refused_and_its_place_named(admin: TestClient) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"limit": 0}, "/limit"),
        ({"limit": 101}, "/limit"),
        ({"limit": "many"}, "/limit"),
        ({"limit": True}, "/limit"),
        ({"limit": "5"}, "/limit"),
        ({"include_seen": 1}, "/include_seen"),
        ({"explain": "yes"}, "/explain"),
        ({"history": ["i"] * 201}, "/history"),
        ({"history": "i00"}, "/history"),
        ({"history": [1]}, "/history/0"),
        ({"exclude_item_ids": ["i"] * 501}, "/exclude_item_ids"),
        ({"user_id": ""}, "/user_id"),
        ({"user_id": "x" * 129}, "/user_id"),
        ({"user_id": "a\u0000b"}, "/user_id"),
        ({"filters": {"colour": "red"}}, "/filters/colour"),
        ({"filters": {"category": ""}}, "/filters/category"),
        ({"filters": {"brand": "a\u0000b"}}, "/filters/brand"),
        ({"filters": {"categories": ["a\u0000b"]}}, "/filters/categories/0"),
        ({"users": "u"}, "/users"),
    ]
    for body, pointer in wrong:
        reply = admin.post("/v1/recommendations", json={"user_id": "u"} | body)
        assert reply.status_code == 422, (body, reply.text)
        assert reply.headers["content-type"] == "application/problem+json"
        assert [error["pointer"] for error in reply.json()["errors"]] == [pointer], body
    most = {"history": ["i"] * 200, "exclude_item_ids": ["i"] * 500, "limit": 100}
    assert admin.post("/v1/recommendations", json=most).status_code == 200
    for limit in ("0", "101", "x"):
        assert admin.get("/v1/users/u/recommendations", params={"limit": limit}).status_code == 422


def test_a_body_that_is_no_object_is_refused(admin: TestClient) -> None:
    for body in (b"", b"{", b"[]", b'"u"', b"null"):
        reply = admin.post("/v1/recommendations", content=body, headers={"Content-Type": "application/json"})
        assert reply.status_code == 422, body


def test_a_key_with_read_scope_is_needed(app: FastAPI, client: TestClient) -> None:
    def statuses(headers: dict[str, str]) -> list[int]:
        asked = client.post("/v1/recommendations", json={"user_id": "u"}, headers=headers)
        return [asked.status_code, client.get("/v1/users/u/recommendations", headers=headers).status_code]

    def key(scope: Scope) -> dict[str, str]:
        token = app.state.services.access.create("t", frozenset({scope}), actor="cli").token
        return {"Authorization": f"Bearer {token}"}

    assert statuses({}) == [401, 401]
    assert statuses({"Authorization": "Bearer adp_0_0"}) == [401, 401]
    assert statuses(key(Scope.WRITE)) == [403, 403]
    assert statuses(key(Scope.READ)) == [200, 200]
    assert statuses(key(Scope.ADMIN)) == [200, 200]
