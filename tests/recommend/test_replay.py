"""A past recommendation is computed again to the last bit, whatever has happened since; what is gone is said."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from starlette.testclient import TestClient
from typer.testing import CliRunner

from service.catalog import repository as catalog
from service.recommend.replay import Replay, replay
from service.settings import Settings
from service.tables import metadata
from service.windows.retention import remove_old
from tests import worlds
from tests.built import BuiltWorld
from tests.conftest import SetClock
from tests.recommend.shop import Reply, Shop, ids, ladder
from trainer import cli

LATER = worlds.START + timedelta(days=3)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Reasons are compared, and the machine may be busy."""
    return settings.model_copy(
        update={"request_deadline": timedelta(minutes=1), "explain_timeout": timedelta(minutes=1)}
    )


@pytest.fixture
def shop(app: FastAPI, admin: TestClient, built_world: BuiltWorld) -> Shop:
    return Shop.serving(app, admin, built_world)


def again(shop: Shop, reply: Reply, *, explain: bool = False) -> Replay:
    services = shop.services
    return replay(services.database, services.artifacts, services.settings, reply["recommendation_id"], explain=explain)


def unsettle(shop: Shop, reply: Reply) -> None:
    """Change what can be changed: the first item is hidden, the next taken, another adapter serves."""
    first, second = ids(reply)[:2]
    assert shop.client.delete(f"/v1/items/{first}").status_code == 204
    assert shop.client.put("/v1/items", json={"items": [new_item("zz")]}).status_code == 200
    shop.send(*(worlds.event(f"after-{i}", f"u{i:02d}", second, LATER) for i in range(10)))
    version = shop.adapter(seed=5)
    shop.client.post(f"/v1/admin/adapters/{version}/promote", headers={"If-Match": "*"}).raise_for_status()
    worlds.eventually(lambda: shop.served() == version, 20)
    worlds.eventually(lambda: first not in ids(shop.ask(user_id="u01", include_seen=True)))


def new_item(item_id: str, **changes: Any) -> dict[str, Any]:
    return {"item_id": item_id, "title": "silver kettle", "categories": ["kettle"]} | changes


@pytest.mark.parametrize(
    ("wanted", "rung"),
    [
        ({"user_id": "u00"}, "personalised"),
        ({"user_id": "u00", "limit": 25, "exclude_item_ids": ["i07", "i08"]}, "personalised"),
        ({"user_id": "u00", "include_seen": True, "filters": {"category": "lamp"}}, "personalised"),
        ({"history": ["i03", "unheard-of", "i04"]}, "personalised"),
        ({"user_id": "u00", "history": ["i03", "i04"]}, "personalised"),
        ({"user_id": "u00", "diversity": 0.6}, "personalised"),
        ({"user_id": "u00", "filters": {"categories": ["lamp", "chair"]}, "diversity": 0.9}, "personalised"),
        ({"history": ["i03"], "filters": {"category": "lamp"}, "filter_mode": "relaxed", "limit": 12}, "personalised"),
        ({"user_id": "stranger", "filters": {"brand": "acme"}, "filter_mode": "relaxed"}, "popular"),
        ({"user_id": "u00", "exploration": 0.25}, "personalised"),
        ({"user_id": "u00", "exploration": 0.3, "diversity": 0.9, "filters": {"category": "lamp"}}, "personalised"),
        ({"user_id": "stranger", "exploration": 0.5, "limit": 8}, "popular"),
        ({"user_id": "stranger", "diversity": 0.6}, "popular"),
        ({"user_id": "stranger"}, "popular"),
        ({"user_id": "stranger", "limit": 40, "filters": {"category": "Chair"}}, "popular"),
        ({}, "popular"),
    ],
)
def test_the_same_list_comes_again_after_items_events_and_the_model_have_changed(
    shop: Shop, wanted: dict[str, Any], rung: str
) -> None:
    reply = shop.ask(**wanted)
    assert ladder(reply)[0] == rung
    unsettle(shop, reply)

    found = again(shop, reply)

    assert found.impossible is None
    assert found.notes == []
    assert found.identical
    assert found.again == [(item["item_id"], item["score"]) for item in reply["items"]]
    assert ids(shop.ask(**wanted)) != ids(reply), "what is asked now is another list"


def test_items_that_share_a_semantic_id_come_again_in_the_order_of_their_popularity_then(shop: Shop) -> None:
    database, base_id = shop.services.database, shop.built.base_id
    with database.write() as connection:
        revision = catalog.next_revision(connection)
        shared = catalog.by_ids(connection, ["i20"])["i20"].codes
        assert shared is not None
        catalog.set_codes(connection, base_id, dict.fromkeys(["i21", "i22", "i23"], shared), revision=revision)
    worlds.eventually(lambda: shop.index.revision == revision)
    reply = shop.ask(history=["i18", "i19"], limit=20)
    tied = {"i20", "i21", "i22", "i23"}
    assert tied <= set(ids(reply))
    least = [item_id for item_id in ids(reply) if item_id in tied][-1]
    shop.send(*(worlds.event(f"more-{i}", f"v{i}", least, LATER) for i in range(500)))

    def first() -> str:
        return next(item_id for item_id in ids(shop.ask(history=["i18", "i19"], limit=20)) if item_id in tied)

    worlds.eventually(lambda: first() == least, 20)
    found = again(shop, reply)
    assert "popular" in found.row["computed"]
    assert (found.identical, found.notes) == (True, [])


def test_a_list_of_the_base_alone_comes_again(shop: Shop) -> None:
    shop.client.post(
        "/v1/admin/adapters/rollback", json={"to_version": "base"}, headers={"If-Match": "*"}
    ).raise_for_status()
    worlds.eventually(lambda: shop.served() is None, 20)
    reply = shop.ask(user_id="u02")
    assert ladder(reply)[0] == "base"
    unsettle(shop, reply)
    assert again(shop, reply).identical


def test_lists_that_were_searched_for_together_come_again_each(shop: Shop) -> None:
    wanted = [{"user_id": f"u{user:02d}"} for user in range(24)] + [{"history": ["i01"]}, {"history": ["i02", "i03"]}]
    with ThreadPoolExecutor(len(wanted)) as pool:
        replies = list(pool.map(lambda one: shop.ask(**one), wanted))
    rows = [again(shop, reply) for reply in replies]
    sizes = {found.row["computed"]["batch"][0] for found in rows}
    assert max(sizes) > 1, "none shared a batch"
    assert [found.identical for found in rows] == [True] * len(rows)


def test_reasons_are_those_of_then(shop: Shop) -> None:
    reply = shop.ask(user_id="u00", explain=True)
    unsettle(shop, reply)
    found = again(shop, reply, explain=True).now
    assert found is not None
    assert [item.reasons for item in found.items] == [item["reasons"] for item in reply["items"]]
    assert [item.title for item in found.items] == [item["title"] for item in reply["items"]]


def test_the_row_is_small_and_names_its_settings_once(shop: Shop) -> None:
    replies = [shop.ask(user_id="u00"), shop.ask(user_id="u01", limit=3, exclude_item_ids=["i07"])]
    rows = [again(shop, reply).row for reply in replies]
    assert rows[0]["request"] == {"limit": 10}
    assert rows[1]["request"] == {"limit": 3, "exclude_item_ids": ["i07"]}
    assert set(rows[0]["computed"]) == {"past", "batch"}
    assert rows[0]["settings_id"] == rows[1]["settings_id"]
    with shop.services.database.read() as connection:
        table = metadata.tables["recommendation_settings"]
        assert connection.scalar(sa.select(sa.func.count()).select_from(table)) in (1, 2)  # popular ones have their own


def test_the_command_prints_both_lists_and_ends_with_0_only_when_they_are_the_same(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = shop.services.settings
    monkeypatch.setenv("ADAPTIDE_HOME", str(settings.home))
    monkeypatch.setenv("ADAPTIDE_DATABASE_URL", settings.database_url.get_secret_value())
    reply = shop.ask(user_id="u00", limit=3)
    good = CliRunner().invoke(cli.app, ["replay", reply["recommendation_id"], "--explain"])
    assert (good.exit_code, "identical: the same items" in good.stdout) == (0, True)
    document = json.loads(CliRunner().invoke(cli.app, ["replay", reply["recommendation_id"], "--json"]).stdout)
    assert (document["identical"], document["largest_score_difference"]) == (True, 0.0)
    assert [item["item_id"] for item in document["items_again"]] == ids(reply)

    with shop.services.database.write() as connection:
        table = metadata.tables["recommendations"]
        wrong = [[item["item_id"], item["score"] + 0.5] for item in reply["items"]]
        chosen = table.c.recommendation_id == reply["recommendation_id"]
        connection.execute(table.update().where(chosen).values(items=wrong))
    bad = CliRunner().invoke(cli.app, ["replay", reply["recommendation_id"]])
    assert bad.exit_code == 1
    assert "NOT identical: the same items in the same order; largest difference of a score: 0.5" in bad.stdout


def test_an_admin_reads_what_is_kept(shop: Shop) -> None:
    reply = shop.ask(user_id="u00", limit=2)
    found = shop.client.get(f"/v1/admin/recommendations/{reply['recommendation_id']}")
    assert found.status_code == 200
    kept = found.json()
    assert [item["item_id"] for item in kept["items"]] == ids(reply)
    assert (kept["request"], kept["user_id"]) == ({"limit": 2}, "u00")
    assert kept["settings"]["computed_by"]["engine"] == "torch"
    assert shop.client.get("/v1/admin/recommendations/none").status_code == 404


def test_an_erased_user_leaves_nothing_to_compute(shop: Shop) -> None:
    reply = shop.ask(user_id="u00")
    assert shop.client.delete("/v1/users/u00").status_code in (200, 204)
    assert shop.client.get(f"/v1/admin/recommendations/{reply['recommendation_id']}").status_code == 404


def test_events_that_are_gone_are_named(shop: Shop) -> None:
    worlds.eventually(lambda: shop.ask(user_id="stranger")["items"][0]["score"] == 1, 20)  # popularity is counted
    reply = shop.ask(user_id="u00")
    popular = shop.ask(user_id="stranger")
    with shop.services.database.write() as connection:
        events = metadata.tables["events"]
        connection.execute(events.delete().where(events.c.seq <= 400))
    assert "held 12 items then" in " ".join(again(shop, reply).notes)
    found = again(shop, popular)
    assert not found.identical
    assert "popularity had counted the events through number" in " ".join(found.notes)


def test_a_model_that_was_collected_is_named(shop: Shop) -> None:
    reply = shop.ask(user_id="u00")
    version = reply["model"]["adapter_version"]
    shop.artifacts.remove("adapters", version)
    found = again(shop, reply)
    assert found.now is None
    assert not found.identical
    assert version in (found.impossible or "")


def test_a_catalogue_that_is_no_longer_kept_is_named(shop: Shop, clock: SetClock) -> None:
    reply = shop.ask(user_id="u00")
    unsettle(shop, reply)
    with shop.services.database.write() as connection:
        catalog.lock_revision(connection)
        assert catalog.forget_history(connection, worlds.START + timedelta(days=365 * 50), 10_000) > 0
    assert "no longer kept" in (again(shop, reply).impossible or "")
    assert again(shop, shop.ask(user_id="u00")).identical


def test_retention_removes_what_no_kept_recommendation_can_need(shop: Shop, clock: SetClock) -> None:
    unsettle(shop, shop.ask(user_id="u00"))
    database = shop.services.database
    settings = shop.services.settings.model_copy(update={"recommendation_retention": timedelta(days=30)})
    assert remove_old(database, lambda: worlds.START, settings).items == 0
    assert remove_old(database, lambda: worlds.START + timedelta(days=365 * 50), settings).items > 0
    with database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(metadata.tables["item_history"])) == 0


def test_another_machine_is_named(shop: Shop) -> None:
    reply = shop.ask(user_id="u00")
    with shop.services.database.write() as connection:
        table = metadata.tables["recommendation_settings"]
        row = connection.execute(sa.select(table)).mappings().all()
        for one in row:
            if one["details"]["computed_by"]:
                by = one["details"]["computed_by"] | {"device": "Abacus 1", "torch": "0.1"}
                connection.execute(
                    table.update()
                    .where(table.c.settings_id == one["settings_id"])
                    .values(details=one["details"] | {"computed_by": by})
                )
    notes = again(shop, reply).notes
    assert any(note.startswith("torch: 0.1 then") for note in notes)
    assert any(note.startswith("device: Abacus 1 then") for note in notes)


def test_a_row_of_an_earlier_version_says_so(shop: Shop) -> None:
    reply = shop.ask(user_id="u00")
    with shop.services.database.write() as connection:
        table = metadata.tables["recommendations"]
        connection.execute(table.update().values(request=None, computed=None, settings_id=None))
    assert "an earlier version" in (again(shop, reply).impossible or "")


def test_a_field_of_a_later_version_is_no_crash(shop: Shop) -> None:
    reply = shop.ask(user_id="u00")
    with shop.services.database.write() as connection:
        table = metadata.tables["recommendations"]
        connection.execute(table.update().values(request={"limit": 10, "mood": "blue"}))
    assert "a later version" in (again(shop, reply).impossible or "")


def test_cold_items_and_brands_are_those_of_then(shop: Shop) -> None:
    cold = [new_item(f"new{n}", title=f"golden {thing}", brand="Acme") for n, thing in enumerate(("lamp", "chair"))]
    shop.client.put("/v1/items", json={"items": cold}).raise_for_status()
    worlds.eventually(lambda: {"new0", "new1"} <= set(ids(shop.ask(history=["i03"], limit=100))), 20)
    worlds.eventually(lambda: shop.ask(user_id="stranger")["items"][0]["score"] == 1, 20)
    explored = shop.ask(history=["i03"], exploration=0.5, limit=6)
    drawn = shop.ask(user_id="stranger", exploration=0.5, limit=6)
    branded = shop.ask(history=["i03"], filters={"brand": "acme"})
    assert set(ids(branded)) == {"new0", "new1"}
    assert {"new0", "new1"} & set(ids(explored))
    shop.client.put("/v1/items", json={"items": [one | {"brand": "Other"} for one in cold]}).raise_for_status()
    shop.send(*(worlds.event(f"c-{n}-{i}", f"x{n}", f"new{i}", LATER) for n in range(9) for i in range(2)))
    for reply in (explored, drawn, branded):
        found = again(shop, reply)
        assert (found.impossible, found.notes, found.identical) == (None, [], True)


def test_a_choice_out_of_very_many_is_not_kept_and_says_so(shop: Shop) -> None:
    candidates = ["i03", "i04", *(f"none-{n}" for n in range(500))]
    reply = shop.ask(user_id="u00", filters={"item_ids": candidates})
    assert set(ids(reply)) <= {"i03", "i04"}
    found = again(shop, reply)
    assert "more than 500 candidates" in (found.impossible or "")
    assert len(str(found.row["request"])) < 200
    few = shop.ask(user_id="u00", include_seen=True, filters={"item_ids": candidates[:20]})
    assert again(shop, few).identical
