"""A trial over the real application and real models: who is answered by what, and what is stored of it."""

import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.generation.batching import Batcher
from service.kit.db import Database
from service.recommend.tables import recommendations
from service.settings import Settings
from service.telemetry import REGISTRY
from service.trials.shares import place
from service.trials.tables import shadow_rankings
from tests import worlds
from tests.built import BuiltWorld
from tests.conftest import SetClock
from tests.recommend.shop import Reply, Shop, exact, ids, ladder
from tests.serving import serving
from tests.shared.servers import replicas

PATH = "/v1/admin/trial"
USERS = [f"u{number:02d}" for number in range(worlds.USERS)]


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return exact(database_url, tmp_path / "home", request_deadline=10)


@pytest.fixture
def shop(app: FastAPI, admin: TestClient, built_world: BuiltWorld) -> Shop:
    return Shop.serving(app, admin, built_world)


def run(shop: Shop, version: str, kind: str = "canary", share: float = 0.5) -> str:
    """Returns the salt, once this replica holds the candidate."""
    wanted = {"adapter_version": version, "kind": kind, "share": share}
    reply = shop.client.put(PATH, json=wanted)
    assert reply.status_code == 200, reply.text
    revision = reply.json()["revision"]

    def holds() -> bool:
        live = shop.services.trial.live()
        return live is not None and live.revision == revision

    worlds.eventually(holds, 30)
    salt: str = reply.json()["trial"]["salt"]
    return salt


def version_of(reply: Reply) -> str | None:
    version: str | None = reply["model"]["adapter_version"]
    return version


def stored(shop: Shop, reply: Reply) -> dict[str, Any]:
    with shop.services.database.read() as connection:
        query = sa.select(recommendations).where(recommendations.c.recommendation_id == reply["recommendation_id"])
        return dict(connection.execute(query).mappings().one())


def shadowed(database: Database) -> list[dict[str, Any]]:
    with database.read() as connection:
        return [dict(row) for row in connection.execute(sa.select(shadow_rankings)).mappings()]


def history_of(user: str) -> list[str]:
    return [event["item_id"] for event in worlds.first_walks() if event["user_id"] == user]


def right(shop: Shop, reply: Reply, version: str | None, user: str) -> None:
    """Scores and order are those of the model that the reply names, by full forward passes."""
    scores = shop.referee(version, history_of(user))
    assert [item["score"] for item in reply["items"]] == pytest.approx(
        [scores[item_id] for item_id in ids(reply)], abs=1e-4
    )
    best = sorted((score for item, score in scores.items() if item not in history_of(user)), reverse=True)
    assert [item["score"] for item in reply["items"]] == pytest.approx(best[: len(reply["items"])], abs=1e-4)


# Canary


def test_each_user_is_answered_by_the_model_of_the_arm_and_the_row_says_so(shop: Shop) -> None:
    candidate, control = shop.adapter(seed=3), shop.built.adapter_version
    salt = run(shop, candidate)
    arms = {}
    for user in USERS[:16]:
        reply = shop.ask(user_id=user)
        wanted = candidate if place(salt, user) < 0.5 else control
        assert (version_of(reply), ladder(reply)) == (wanted, ("personalised", None))
        row = stored(shop, reply)
        arms[user] = row["arm"]
        assert (row["arm"], row["adapter_version"]) == ("canary" if wanted == candidate else "control", wanted)
    assert set(arms.values()) == {"canary", "control"}
    for arm, version in (("canary", candidate), ("control", control)):
        user = next(user for user, found in arms.items() if found == arm)
        right(shop, shop.ask(user_id=user), version, user)


def test_without_a_user_control_answers_and_neither_it_nor_what_is_without_a_trial_has_an_arm(shop: Shop) -> None:
    assert stored(shop, shop.ask(user_id="u00"))["arm"] is None
    run(shop, shop.adapter(seed=3), share=1.0)
    reply = shop.ask(history=["i00"])
    assert (version_of(reply), stored(shop, reply)["arm"]) == (shop.built.adapter_version, None)
    popular = shop.ask(user_id="stranger")
    assert (ladder(popular), stored(shop, popular)["arm"]) == (("popular", "no_history"), "canary")
    shop.client.delete(PATH).raise_for_status()
    worlds.eventually(lambda: shop.services.trial.live() is None)
    reply = shop.ask(user_id="u00")
    assert (version_of(reply), stored(shop, reply)["arm"]) == (shop.built.adapter_version, None)


def test_the_reply_says_what_the_candidate_has_learnt(shop: Shop) -> None:
    run(shop, shop.adapter(seed=3), share=1.0)
    model = shop.ask(user_id="u00")["model"]
    assert model["trained_through"] == "2026-02-01T00:00:00Z"


def test_trials_come_and_go_under_traffic_and_no_reply_is_wrong(shop: Shop) -> None:
    """Starts, shares, a promotion of the candidate, a rollback, an end: each reply is right for the model it names."""
    candidate, control = shop.adapter(seed=3), shop.built.adapter_version
    truth = {
        (version, user): shop.referee(version, history_of(user))
        for version in (candidate, control)
        for user in USERS[:4]
    }
    replies: list[tuple[str, Reply]] = []
    failures: list[object] = []
    done = threading.Event()

    def traffic(user: str) -> None:
        while not done.is_set():
            reply = shop.client.post("/v1/recommendations", json={"user_id": user})
            if reply.status_code == 200:
                replies.append((user, reply.json()))
            else:
                failures.append(reply.text)

    threads = [threading.Thread(target=traffic, args=(user,)) for user in USERS[:4]]
    for thread in threads:
        thread.start()
    try:
        for share in (0.3, 0.7):
            run(shop, candidate, share=share)
        shop.client.post(f"/v1/admin/adapters/{candidate}/promote").raise_for_status()
        worlds.eventually(lambda: shop.services.serving().adapter_version == candidate, 30)
        worlds.eventually(lambda: shop.services.trial.live() is None, 30)
        shop.client.post("/v1/admin/adapters/rollback").raise_for_status()
        worlds.eventually(lambda: shop.services.serving().adapter_version == control, 30)
        run(shop, candidate, share=0.5)
        shop.client.delete(PATH).raise_for_status()
        worlds.eventually(lambda: shop.services.trial.live() is None, 30)
    finally:
        done.set()
        for thread in threads:
            thread.join(30)
    assert failures == []
    assert {version_of(reply) for _, reply in replies} == {candidate, control}
    for user, reply in replies:
        scores = truth[version_of(reply) or "", user]
        assert [item["score"] for item in reply["items"]] == pytest.approx(
            [scores[item_id] for item_id in ids(reply)], abs=1e-4
        )


def test_a_candidate_that_breaks_at_answering_costs_nobody_an_answer(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = shop.adapter(seed=3)
    run(shop, candidate, share=1.0)
    with shop.services.trial.lease_candidate() as model:
        assert model is not None

        def out_of_memory(*_: object) -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(model, "generate", out_of_memory)
    replies = [shop.ask(user_id=user) for user in USERS[:3]]
    assert {version_of(reply) for reply in replies} == {shop.built.adapter_version}
    assert {ladder(reply) for reply in replies} == {("personalised", None)}
    worlds.eventually(lambda: shop.client.get(PATH).json()["here"]["trouble"] is not None)
    assert shop.client.get("/health/ready").status_code == 200


def test_a_candidate_that_is_damaged_after_its_start_ends_the_trial(shop: Shop) -> None:
    candidate = shop.adapter(seed=3)
    services = shop.services
    services.trial.stop()  # as on a replica that is only coming
    wanted = {"adapter_version": candidate, "kind": "canary", "share": 1.0}
    shop.client.put(PATH, json=wanted).raise_for_status()
    shop.damage(candidate)
    services.trial.refresh()
    assert version_of(shop.ask(user_id="u00")) == shop.built.adapter_version
    found = shop.client.get(PATH).json()
    assert (found["trial"], found["history"][0]["because"]) == (None, "corrupt")


def test_two_replicas_follow_and_agree(
    built_world: BuiltWorld, settings: Settings, clock: SetClock, database: Database
) -> None:
    built = built_world.copy_into(database, settings.artifacts_dir)
    with replicas(settings, clock, 2) as made:  # one hears from the other by polling
        one, two = (Shop(replica.app, replica.client, built) for replica in made)
        worlds.eventually(lambda: {replica.served for replica in made} == {built.adapter_version}, 30)
        candidate = one.adapter(seed=3)
        run(one, candidate)
        worlds.eventually(lambda: two.services.trial.live() is not None, 30)
        for user in USERS[:12]:
            assert version_of(one.ask(user_id=user)) == version_of(two.ask(user_id=user))
        two.client.delete(PATH).raise_for_status()
        worlds.eventually(lambda: one.services.trial.live() is None, 30)


# Shadow


def test_the_shadow_ranks_what_was_answered_and_nobody_sees_it(shop: Shop) -> None:
    candidate = shop.adapter(seed=3)
    run(shop, candidate, "shadow", 1.0)
    replies = {user: shop.ask(user_id=user) for user in USERS[:3]}
    assert {version_of(reply) for reply in replies.values()} == {shop.built.adapter_version}
    worlds.eventually(lambda: len(shadowed(shop.services.database)) == 3, 30)
    rows = {row["recommendation_id"]: row for row in shadowed(shop.services.database)}
    for user, reply in replies.items():
        row = rows[reply["recommendation_id"]]
        assert (row["adapter_version"], stored(shop, reply)["arm"]) == (candidate, None)
        right(shop, {"items": [{"item_id": i, "score": s} for i, s in row["items"]]}, candidate, user)


def test_only_its_share_is_ranked_in_the_shadow(shop: Shop) -> None:
    salt = run(shop, shop.adapter(seed=3), "shadow", 0.3)
    replies = {user: shop.ask(user_id=user)["recommendation_id"] for user in USERS[:12]}
    wanted = {replies[user] for user in replies if place(salt, user) < 0.3}
    worlds.eventually(lambda: {row["recommendation_id"] for row in shadowed(shop.services.database)} == wanted, 30)


def test_an_erased_user_is_erased_from_the_shadow_and_exported_before(shop: Shop) -> None:
    run(shop, shop.adapter(seed=3), "shadow", 1.0)
    for user in ("u00", "u01"):
        shop.ask(user_id=user)
    database = shop.services.database
    worlds.eventually(lambda: len(shadowed(database)) == 2, 30)
    export = shop.client.get("/v1/users/u00/export").text
    assert export.count('"kind":"shadow_ranking"') == 1
    assert shop.client.delete("/v1/users/u00").status_code in (200, 204)
    assert len(shadowed(database)) == 1


def test_what_is_ranked_after_its_user_was_erased_is_not_stored(shop: Shop) -> None:
    run(shop, shop.adapter(seed=3), "shadow", 1.0)
    batcher = next(part for part in shop.services.background if isinstance(part, Batcher))
    dropped = REGISTRY.get_sample_value("adaptide_shadow_rankings_total", {"outcome": "dropped"}) or 0
    with batcher.coming():  # holds spare searches up
        shop.ask(user_id="u00")
        worlds.eventually(lambda: len(batcher._spare) == 1)
        assert shop.client.delete("/v1/users/u00").status_code in (200, 204)
    worlds.eventually(
        lambda: REGISTRY.get_sample_value("adaptide_shadow_rankings_total", {"outcome": "dropped"}) == dropped + 1, 30
    )
    assert shadowed(shop.services.database) == []


# A process that dies


@pytest.mark.e2e
def test_a_killed_replica_takes_the_trial_up_again(
    built_world: BuiltWorld,
    settings: Settings,
    database: Database,
    clock: SetClock,
    database_url: str,
    tmp_path: Path,
) -> None:
    with replicas(settings, clock, 1) as [made]:
        shop = Shop(made.app, made.client, built_world.copy_into(database, settings.artifacts_dir))
        candidate = shop.adapter(seed=3)
        salt = run(shop, candidate)
        token = made.client.headers["Authorization"]
        user = next(user for user in USERS if place(salt, user) < 0.5)
        for _ in range(2):
            with serving(database_url, tmp_path / "home", BEAMS="64", THREADS="1", POLL_INTERVAL="0.05") as (
                process,
                address,
            ):
                client = httpx.Client(base_url=address, headers={"Authorization": token}, timeout=30)

                def answered_by(client: httpx.Client = client) -> str | None:
                    return version_of(client.post("/v1/recommendations", json={"user_id": user}).json())

                worlds.eventually(lambda: answered_by() == candidate, 60)
                process.send_signal(signal.SIGKILL)
                process.wait(30)
                client.close()
        assert version_of(shop.ask(user_id=user)) == candidate
