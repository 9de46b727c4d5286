"""The same question within a moment is answered from Redis; whatever shapes the answer makes another question."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.catalog.index import CatalogueIndex, IndexedItem
from service.kit.clock import utc_now
from service.kit.db import Database
from service.kit.redis_link import RedisLink
from service.recommend.answer_cache import AnswerCache, KeptAnswer, Question, forget
from service.recommend.history import UserPast
from service.recommend.replay import replay
from service.recommend.schemas import Filters, RecommendationRequest
from service.recommend.tables import recommendations
from service.settings import FilterMode, Settings
from service.shared import told_of_erasures
from service.telemetry import REGISTRY
from service.users.service import erase_user
from tests import worlds
from tests.built import BuiltWorld
from tests.conftest import SetClock
from tests.recommend.shop import Shop, ids, ladder
from tests.shared.conftest import PATIENCE
from tests.shared.servers import OwnRedis, Replica, replicas, soon
from trainer.base import BuiltBase

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def settings(database_url: str, tmp_path: Path, redis_url: str, prefix: str) -> Settings:
    return Settings(
        home=tmp_path / "home",
        database_url=database_url,
        log_level="WARNING",
        poll_interval=timedelta(seconds=0.05),
        redis_url=redis_url,
        redis_prefix=prefix,
        redis_timeout=PATIENCE,
        recommendation_cache=timedelta(seconds=60),
        request_deadline=timedelta(seconds=60),  # reasons are compared, and the machine may be busy
        explain_timeout=timedelta(seconds=60),
        beams=64,
        threads=1,
    )


@pytest.fixture
def pair(
    built_world: BuiltWorld, settings: Settings, database: Database, clock: SetClock
) -> Iterator[tuple[Shop, Shop]]:
    """Two replicas of the small world."""
    built: BuiltBase = built_world.copy_into(database, settings.artifacts_dir)
    with replicas(settings, clock, 2) as made:
        soon(lambda: all(replica.link.up for replica in made))
        shops = [Shop(replica.app, replica.client, built) for replica in made]
        soon(lambda: {replica.served for replica in made} == {built.adapter_version})
        yield shops[0], shops[1]


def generated() -> float:
    """Requests that were searched for in this process so far."""
    return REGISTRY.get_sample_value("adaptide_generation_batch_requests_sum") or 0


def hits() -> float:
    return REGISTRY.get_sample_value("adaptide_cache_lookups_total", {"cache": "recommendation", "outcome": "hit"}) or 0


def searches(shop: Shop, **wanted: object) -> int:
    """How many searches one reply took: 1, or 0 when it was kept."""
    before = generated()
    assert ladder(shop.ask(**wanted))[0] in ("personalised", "base")
    return int(generated() - before)


def test_a_kept_answer_is_the_same_list_under_an_id_of_its_own(pair: tuple[Shop, Shop], database: Database) -> None:
    one, two = pair
    first = one.ask(user_id="u00", explain=True)
    soon(lambda: searches(one, user_id="u00") == 0)
    before = hits()
    second = two.ask(user_id="u00", explain=True)
    assert hits() == before + 1
    assert {**second, "recommendation_id": ""} == {**first, "recommendation_id": ""}
    assert second["recommendation_id"] != first["recommendation_id"]
    with database.read() as connection:
        query = sa.select(recommendations.c["items"]).where(
            recommendations.c.recommendation_id.in_([first["recommendation_id"], second["recommendation_id"]])
        )
        stored = list(connection.scalars(query))
    assert len(stored) == 2
    assert stored[0] == stored[1] == [[item["item_id"], item["score"]] for item in first["items"]]


def test_a_kept_answer_names_the_recommendation_that_it_was_made_for_and_is_computed_again(
    pair: tuple[Shop, Shop],
) -> None:
    one, two = pair
    first = one.ask(user_id="u00")
    soon(lambda: searches(one, user_id="u00") == 0)
    kept = two.ask(user_id="u00")
    services = two.services
    found = replay(services.database, services.artifacts, services.settings, kept["recommendation_id"])
    assert found.identical
    assert found.notes == [
        f"the reply was a kept answer, made for recommendation {found.row['computed']['copied_from']}"
    ]
    original = replay(services.database, services.artifacts, services.settings, first["recommendation_id"])
    assert (original.identical, original.notes) == (True, [])
    assert original.row["settings_id"] == found.row["settings_id"]


def test_an_event_an_item_and_a_promotion_each_end_it(pair: tuple[Shop, Shop]) -> None:
    one, two = pair
    one.ask(user_id="u00")
    soon(lambda: searches(two, user_id="u00") == 0)

    taken = ids(two.ask(user_id="u00"))[0]
    one.send(worlds.event("new", "u00", taken, worlds.START + timedelta(days=1)))
    assert taken not in ids(two.ask(user_id="u00"))
    soon(lambda: searches(two, user_id="u00") == 0)

    hidden = ids(two.ask(user_id="u00"))[0]
    assert two.client.delete(f"/v1/items/{hidden}").status_code == 204
    assert hidden not in ids(two.ask(user_id="u00"))
    soon(lambda: searches(two, user_id="u00") == 0)

    before = two.ask(user_id="u00")
    version = one.adapter(seed=3)
    one.client.post(f"/v1/admin/adapters/{version}/promote", headers={"If-Match": "*"}).raise_for_status()
    soon(lambda: two.served() == version)
    after = two.ask(user_id="u00")
    assert after["model"]["adapter_version"] == version
    assert [item["score"] for item in after["items"]] != [item["score"] for item in before["items"]]


def test_a_fallback_is_never_kept(pair: tuple[Shop, Shop]) -> None:
    one, _ = pair
    before = hits()
    for _ in range(3):
        assert ladder(one.ask(user_id="stranger")) == ("popular", "no_history")
        assert ladder(one.ask(history=["unheard-of"])) == ("popular", "history_unknown")
    assert hits() == before


def test_a_filled_or_explored_list_is_searched_for_again_and_a_filtered_one_keeps_its_marks(
    pair: tuple[Shop, Shop],
) -> None:
    one, _ = pair
    filtered = {"user_id": "u00", "filters": {"category": "lamp"}, "limit": 3}
    first = one.ask(**filtered)
    soon(lambda: searches(one, **filtered) == 0)
    again = one.ask(**filtered)
    assert (again["items"], again["filters_applied"]) == (first["items"], "strict")
    assert {item["filtered"] for item in again["items"]} == {True}
    for asked in (
        {"user_id": "u00", "filters": {"category": "lamp"}, "filter_mode": "relaxed", "limit": 30},
        {"user_id": "u00", "exploration": 0.5},
    ):
        one.ask(**asked)
        assert searches(one, **asked) > 0


@pytest.mark.parametrize("how", ["api", "command"])
def test_an_erased_users_answers_are_not_given_again(pair: tuple[Shop, Shop], how: str) -> None:
    """The same question as before: its past is its own, so nothing in it changes with the erasure."""
    one, two = pair
    asked = {"user_id": "u00", "history": ids(one.ask(user_id="u00"))[:2], "include_seen": True}
    other = asked | {"user_id": "u01"}
    for question in (asked, other):
        one.ask(**question)
        soon(lambda question=question: searches(two, **question) == 0)  # type: ignore[misc]  # bound for B023
    if how == "api":
        assert one.client.delete("/v1/users/u00").status_code == 200
    else:
        with told_of_erasures(one.services.settings) as tell:
            erase_user(one.services.database, "u00", clock=utc_now, actor="cli", on_erased=tell)
    assert [searches(shop, **asked) for shop in (two, one, two)] == [1, 1, 1]
    assert searches(two, **other) == 0


LIFE = timedelta(seconds=60)
ANSWER = KeptAnswer(("a",), (0.5,), "b-1", None, "r", {}, None)
NO_ITEMS = CatalogueIndex((), 7, "b-1")


@contextmanager
def started(link: RedisLink, settings: Settings) -> Iterator[AnswerCache]:
    cache = AnswerCache(link, settings, LIFE, lambda: ("b-1", None))
    cache.start()
    try:
        yield cache
    finally:
        cache.stop()


def question_of(cache: AnswerCache, user_id: str | None) -> Question:
    past = UserPast(("a",), ("a",))
    return cache.question(RecommendationRequest(user_id=user_id), past, past.latest, NO_ITEMS)


def found(cache: AnswerCache, user_id: str | None) -> KeptAnswer | None:
    return asyncio.run(cache.find(question_of(cache, user_id)))


def kept(cache: AnswerCache, user_id: str | None) -> None:
    cache.keep(question_of(cache, user_id), ANSWER)
    soon(lambda: found(cache, user_id) == ANSWER)


def test_what_was_being_answered_while_a_user_was_erased_is_not_kept(link: RedisLink, settings: Settings) -> None:
    with started(link, settings) as cache:
        kept(cache, "u")
        under_way = question_of(cache, "u")
        forget(link, "u")
        assert found(cache, "u") is None
        cache.keep(under_way, ANSWER)
        kept(cache, None)  # behind it
        kept(cache, "v")
        assert found(cache, "u") is None
        assert link.run(lambda client: client.pttl(under_way.mark)) > 2 * LIFE.total_seconds() * 1000 - 30_000


def test_an_erasure_that_redis_was_not_told_of_ends_every_answer_once_it_answers(
    own_redis: OwnRedis, settings: Settings
) -> None:
    writer = RedisLink(own_redis.url, timeout=timedelta(seconds=0.2))
    reader = RedisLink(own_redis.url, timeout=PATIENCE)
    assert reader.connect()
    writer.start()
    soon(lambda: writer.up)
    with started(reader, settings) as cache:
        kept(cache, "u")
        own_redis.pause()
        soon(lambda: not writer.up)
        forget(writer, "u")
        own_redis.go_on()
        soon(lambda: writer.up)
        assert found(cache, "u") is None
        kept(cache, "v")
    for link in (writer, reader):
        link.stop()


def test_an_answer_is_kept_where_redis_was_emptied(link: RedisLink, settings: Settings) -> None:
    with started(link, settings) as cache:
        link.run(lambda client: client.delete(link.epoch_key))
        assert found(cache, "u") is None
        kept(cache, "u")


def test_everything_that_shapes_an_answer_is_in_the_question(settings: Settings, link: RedisLink) -> None:
    def index(revision: int = 7, base_id: str = "b-1") -> CatalogueIndex:
        items = tuple(IndexedItem(name, name, (), True, (place, 0, 0, 0)) for place, name in enumerate("abcd"))
        return CatalogueIndex(items, revision, base_id)

    cache = AnswerCache(link, settings, timedelta(seconds=1), lambda: ("b-1", None))
    past, request = UserPast(("a",), ("a", "b")), RecommendationRequest(user_id="u")

    def changed(**what: object) -> RecommendationRequest:
        return request.model_copy(update=what)

    asked = cache.question(request, past, past.latest, index())
    other = settings.model_copy(update={"beams": 20})
    questions = [
        asked,
        cache.question(changed(user_id="v"), past, past.latest, index()),
        cache.question(changed(limit=11), past, past.latest, index()),
        cache.question(changed(exclude_item_ids=["c"]), past, past.latest, index()),
        cache.question(changed(include_seen=True), past, past.latest, index()),
        cache.question(changed(filters=Filters(category="lamp")), past, past.latest, index()),
        cache.question(changed(filters=Filters(categories=["lamp"])), past, past.latest, index()),
        cache.question(changed(filters=Filters(brand="lamp")), past, past.latest, index()),
        cache.question(changed(filters=Filters(item_ids=["c"])), past, past.latest, index()),
        cache.question(changed(filter_mode=FilterMode.RELAXED), past, past.latest, index()),
        cache.question(changed(diversity=0.5), past, past.latest, index()),
        cache.question(request, UserPast(("a",), ("a",)), past.latest, index()),
        cache.question(request, past, ("b",), index()),
        cache.question(request, past, ("a", "b"), index()),
        cache.question(request, past, past.latest, index(revision=8)),
        cache.question(request, past, past.latest, index(base_id="b-2")),
        AnswerCache(link, other, timedelta(seconds=1), lambda: (None, None)).question(
            request, past, past.latest, index()
        ),
    ]
    assert len(set(questions)) == len(questions)
    assert len({cache._key(asked, base, version) for base in ("b-1", "b-2") for version in (None, "a1", "a2")}) == 6
    same = cache.question(changed(exclude_item_ids=[], explain=True), past, past.latest, index())
    assert same == asked, "reasons are made anew for each reply"


def test_without_redis_every_question_is_searched_for(pair: tuple[Shop, Shop]) -> None:
    one, _ = pair
    replica = Replica(one.app, one.client)
    replica.link.distrust()  # the breaker is open for a moment
    assert searches(one, user_id="u05") == 1


def test_the_arms_of_a_canary_keep_answers_of_their_own(pair: tuple[Shop, Shop]) -> None:
    """A user who changes the arm, as the share grows, is never given what the other model answered before."""
    one, two = pair
    before = one.ask(user_id="u00")
    soon(lambda: searches(two, user_id="u00") == 0)
    version = one.adapter(seed=3)
    wanted = {"adapter_version": version, "kind": "canary", "share": 1.0}
    one.client.put("/v1/admin/trial", json=wanted).raise_for_status()
    soon(lambda: all(shop.services.trial.live() is not None for shop in pair))

    first = one.ask(user_id="u00")
    assert first["model"]["adapter_version"] == version
    assert [item["score"] for item in first["items"]] != [item["score"] for item in before["items"]]
    soon(lambda: searches(two, user_id="u00") == 0)
    kept = two.ask(user_id="u00")
    assert (kept["items"], kept["model"]) == (first["items"], first["model"])

    one.client.delete("/v1/admin/trial").raise_for_status()
    soon(lambda: all(shop.services.trial.live() is None for shop in pair))
    after = two.ask(user_id="u00")
    assert (after["items"], after["model"]) == (before["items"], before["model"])
