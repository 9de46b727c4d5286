"""A kept past outlives the store's answers; what then hangs must not hang the recommendation."""

from concurrent.futures import Future
from datetime import timedelta

import pytest

from service.kit.db import Database
from service.kit.redis_link import RedisLink
from service.recommend.history import history_reader
from service.recommend.past_cache import PastCache
from service.recommend.schemas import RecommendationRequest, Strategy
from tests.recommend.test_recommender import MODEL_ORDER, Counter, away, counter  # noqa: F401  # fixtures

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def test_a_kept_past_serves_while_the_store_does_not_answer(
    counter: Counter,  # noqa: F811
    away: Database,  # noqa: F811
    link: RedisLink,
) -> None:
    counter.settings = counter.settings.model_copy(update={"request_deadline": timedelta(seconds=0.5)})
    counter.take("u", "a")
    made = counter.recommender()
    cache = PastCache(link, counter.settings)
    reader = history_reader(counter.database, counter.settings, cache)
    reader.start()
    reader.ask("u").result(10)  # leaves the past
    reader.stop()
    blind = history_reader(away, counter.settings, cache)
    blind.start()
    made._read_past = blind.ask
    made._record = lambda row: Future()  # a store that takes the row and never says so
    reply = made.ask(RecommendationRequest(user_id="u"))
    assert reply.strategy is Strategy.PERSONALISED
    assert [item.item_id for item in reply.items] == MODEL_ORDER
    assert counter.stored() == 0
    blind.stop()
