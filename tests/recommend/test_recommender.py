"""When something is slow, full, broken or away, the user still gets a list, and the reply says why."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from service.catalog.index import CatalogueIndex, IndexedItem
from service.catalog.trie import Trie
from service.generation.batching import Batcher
from service.generation.engine import Generated, GenerationRequest
from service.kit.db import Database
from service.kit.grouped import Grouped
from service.recommend.history import history_reader
from service.recommend.record import recommendation_writer
from service.recommend.schemas import FallbackReason, RecommendationReply, RecommendationRequest, Strategy
from service.recommend.service import Recommender
from service.recommend.tables import recommendations
from service.settings import Settings
from tests import worlds
from tests.conftest import SetClock

INDEX = CatalogueIndex(
    tuple(IndexedItem(name, name.upper(), (), True, (place, 0, 0, 0)) for place, name in enumerate("abcd")), 7, "b-1"
)
POPULARITY = np.array([0.25, 1.0, 0.5, 0.0])
MODEL_ORDER, POPULAR_ORDER = ["d", "c", "b"], ["b", "c", "d"]  # after a history of "a"
NOWHERE = "postgresql://nobody@127.0.0.1:1/none"


class LastFirst:
    """A ServedModel that ranks the catalogue from its end. `hold`: generations wait for it; `broken`: they raise."""

    def __init__(self, base_id: str = "b-1", adapter_version: str | None = "a000001-000000000000") -> None:
        self.base_id, self.adapter_version = base_id, adapter_version
        self.hold, self.broken = threading.Event(), False
        self.hold.set()
        self.began = threading.Semaphore(0)
        self.answered = 0

    def generate(self, requests: Sequence[GenerationRequest], trie: Trie) -> list[Generated]:
        self.began.release()
        assert self.hold.wait(10)
        if self.broken:
            raise RuntimeError("out of memory")
        self.answered += len(requests)
        found = []
        for request in requests:
            leaves = np.setdiff1d(np.arange(trie.leaves, dtype=np.int64), request.excluded)[::-1][: request.limit]
            found.append(Generated(leaves, -np.arange(1, len(leaves) + 1, dtype=np.float32)))
        return found

    def close(self) -> None:
        """Nothing is held."""


class Asked(Recommender):
    """A recommender that any thread may ask and wait for."""

    def ask(self, request: RecommendationRequest) -> RecommendationReply:
        return asyncio.run(self.recommend(request))


class Counter:
    """A recommender over one model and the test's store."""

    def __init__(self, database: Database, clock: SetClock, settings: Settings) -> None:
        self.database, self.clock, self.settings = database, clock, settings
        self.model: LastFirst | None = LastFirst()
        self.active_base: str | None = "b-1"
        self.index = INDEX
        self.told: list[tuple[Strategy, FallbackReason | None]] = []
        self._threads: list[Batcher | Grouped[Any, Any]] = []

    @contextmanager
    def _lease(self) -> Iterator[LastFirst | None]:
        yield self.model

    def recommender(self, database: Database | None = None, queued: int = 8, batch: int = 4) -> Asked:
        self.batcher = Batcher(self._lease, batch, queued)
        histories = history_reader(database or self.database, self.settings)
        records = recommendation_writer(database or self.database)
        for thread in (self.batcher, histories, records):
            thread.start()
            self._threads.append(thread)
        return Asked(
            settings=self.settings,
            clock=self.clock,
            index=lambda: self.index,
            popularity=lambda index: POPULARITY,
            batcher=self.batcher,
            read_past=histories.ask,
            record=records.ask,
            active_base=lambda: self.active_base,
            trained_through=self._trained_through,
            on_reply=lambda strategy, reason: self.told.append((strategy, reason)),
        )

    def _trained_through(self, base_id: str, version: str | None) -> datetime | None:
        return worlds.START if (base_id, version) == ("b-1", "a000001-000000000000") else None

    def take(self, user: str, *items: str) -> None:
        start = worlds.START
        worlds.send(
            self.database,
            self.clock,
            [worlds.event(f"{user}-{i}", user, item, start + timedelta(minutes=i)) for i, item in enumerate(items)],
        )

    def stored(self) -> int:
        with self.database.read() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(recommendations)) or 0

    def stop(self) -> None:
        if self.model is not None:
            self.model.hold.set()
        for thread in self._threads:
            thread.stop()


@pytest.fixture
def counter(database: Database, clock: SetClock, tmp_path: Path) -> Iterator[Counter]:
    made = Counter(database, clock, Settings(home=tmp_path, request_deadline=timedelta(seconds=10)))
    yield made
    made.stop()


@pytest.fixture
def away() -> Iterator[Database]:
    """A store that does not answer."""
    database = Database(NOWHERE)
    yield database
    database.close()


def after(*history: str, **more: object) -> RecommendationRequest:
    return RecommendationRequest.model_validate({"history": list(history), **more})


def names(reply: RecommendationReply) -> list[str]:
    return [item.item_id for item in reply.items]


def ladder(reply: RecommendationReply) -> tuple[str, str | None]:
    return reply.strategy.value, reply.fallback_reason.value if reply.fallback_reason else None


def test_a_model_that_answers_ranks(counter: Counter) -> None:
    reply = counter.recommender().ask(after("a"))
    assert (names(reply), ladder(reply)) == (MODEL_ORDER, ("personalised", None))
    assert [item.score for item in reply.items] == [-1, -2, -3]
    assert reply.model is not None
    assert reply.model.trained_through == worlds.START
    assert counter.told == [(Strategy.PERSONALISED, None)]


def test_a_model_without_an_adapter_is_the_base(counter: Counter) -> None:
    counter.model = LastFirst(adapter_version=None)
    reply = counter.recommender().ask(after("a"))
    assert (names(reply), ladder(reply)) == (MODEL_ORDER, ("base", "no_adapter"))


def test_a_slow_model_costs_no_more_than_the_deadline_and_its_answer_is_dropped(counter: Counter) -> None:
    assert counter.model is not None
    counter.settings = counter.settings.model_copy(update={"request_deadline": timedelta(seconds=0.05)})
    counter.model.hold.clear()
    recommender = counter.recommender()
    reply = recommender.ask(after("a"))
    assert (names(reply), ladder(reply), reply.model) == (POPULAR_ORDER, ("popular", "deadline"), None)
    late = recommender.ask(after("b"))  # waits behind the first one, and is never generated
    assert ladder(late) == ("popular", "deadline")
    counter.model.hold.set()
    worlds.eventually(lambda: counter.model is not None and counter.model.answered == 1)
    worlds.eventually(lambda: ladder(recommender.ask(after("c"))) == ("personalised", None))
    assert counter.model.answered == 1 + len([told for told in counter.told if told[1] is None])


def test_a_request_whose_client_has_gone_is_not_generated(counter: Counter) -> None:
    assert counter.model is not None
    counter.model.hold.clear()
    recommender = counter.recommender(batch=1)
    first = threading.Thread(target=recommender.ask, args=[after("a")])
    first.start()
    assert counter.model.began.acquire(timeout=5)  # it computes for the first one

    async def ask_and_leave() -> None:
        task = asyncio.ensure_future(recommender.recommend(after("a")))
        while not counter.batcher.queued:  # noqa: ASYNC110  # another thread takes what is queued
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask_and_leave())
    counter.model.hold.set()
    first.join()
    assert ladder(recommender.ask(after("a"))) == ("personalised", None)
    assert counter.model.answered == counter.stored() == 2


def test_a_full_queue_is_not_joined(counter: Counter) -> None:
    assert counter.model is not None
    counter.model.hold.clear()
    recommender = counter.recommender(queued=1, batch=1)
    crowd = [threading.Thread(target=recommender.ask, args=[after("a")]) for _ in range(2)]
    crowd[0].start()
    assert counter.model.began.acquire(timeout=5)  # it computes for the first one
    crowd[1].start()
    worlds.eventually(lambda: counter.batcher.queued == 1)  # and the second one waits
    reply = recommender.ask(after("a"))
    assert (names(reply), ladder(reply)) == (POPULAR_ORDER, ("popular", "overloaded"))
    counter.model.hold.set()
    for thread in crowd:
        thread.join()
    assert counter.model.answered == 2


def test_a_service_that_stops_still_answers(counter: Counter) -> None:
    recommender = counter.recommender()
    counter.stop()
    assert ladder(recommender.ask(after("a"))) == ("popular", "overloaded")


def test_an_engine_that_fails_fails_one_batch_only(counter: Counter) -> None:
    assert counter.model is not None
    recommender = counter.recommender()
    counter.model.broken = True
    reply = recommender.ask(after("a"))
    assert (names(reply), ladder(reply)) == (POPULAR_ORDER, ("popular", "engine_error"))
    counter.model.broken = False
    assert ladder(recommender.ask(after("a"))) == ("personalised", None)


def test_without_a_model_or_with_one_of_another_base_it_is_popular(counter: Counter) -> None:
    recommender = counter.recommender()

    def no_model() -> None:
        reply = recommender.ask(after("a"))
        assert (names(reply), ladder(reply)) == (POPULAR_ORDER, ("popular", "no_model"))

    counter.active_base = None  # none is loaded
    no_model()
    counter.active_base = "b-2"  # the catalogue still holds the codes of the base before
    no_model()
    counter.active_base, counter.model = "b-1", LastFirst(base_id="b-2")  # swapped while the request was on its way
    no_model()
    counter.model = None  # or taken away
    no_model()


def test_a_user_without_known_items_gets_the_reason(counter: Counter) -> None:
    recommender = counter.recommender()
    counter.take("u", "unheard-of")
    assert ladder(recommender.ask(RecommendationRequest(user_id="u"))) == ("popular", "history_unknown")
    assert ladder(recommender.ask(RecommendationRequest(user_id="stranger"))) == ("popular", "no_history")


def test_without_the_store_a_user_gets_what_is_popular_and_the_reason(counter: Counter, away: Database) -> None:
    counter.take("u", "b")
    reply = counter.recommender(away).ask(RecommendationRequest(user_id="u"))
    assert (names(reply), ladder(reply)) == (["b", "c", "a", "d"], ("popular", "store_unavailable"))
    assert counter.stored() == 0


def test_without_the_store_a_given_history_is_still_personalised(counter: Counter, away: Database) -> None:
    recommender = counter.recommender(away)
    for request in (after("a"), after("a", user_id="u"), after("a", user_id="u", include_seen=True)):
        assert ladder(recommender.ask(request)) == ("personalised", None)
    assert counter.stored() == 0


def test_every_reply_is_stored_under_its_own_id(counter: Counter) -> None:
    recommender = counter.recommender()
    replies = [recommender.ask(after("a")), recommender.ask(after())]
    assert len({reply.recommendation_id for reply in replies}) == counter.stored() == 2


def test_who_only_looks_gets_the_same_and_leaves_no_trace(counter: Counter) -> None:
    recommender = counter.recommender()
    asked = recommender.ask(after("a"))
    looked = asyncio.run(recommender.recommend(after("a"), record=False))
    assert names(looked) == names(asked)
    assert ladder(looked) == ladder(asked)
    assert (counter.stored(), len(counter.told)) == (1, 1)


def test_seen_items_are_left_out_however_long_ago_they_were_seen(counter: Counter) -> None:
    counter.settings = counter.settings.model_copy(update={"history_items": 1})
    counter.take("u", "d", "a", "c")
    recommender = counter.recommender()
    assert names(recommender.ask(RecommendationRequest(user_id="u"))) == ["b"]
    everything = recommender.ask(RecommendationRequest(user_id="u", include_seen=True))
    assert names(everything) == ["d", "c", "b", "a"]


def test_a_request_keeps_the_catalogue_it_began_with(counter: Counter) -> None:
    assert counter.model is not None
    counter.model.hold.clear()
    recommender = counter.recommender()
    replies: list[RecommendationReply] = []
    asking = threading.Thread(target=lambda: replies.append(recommender.ask(after("a"))))
    asking.start()
    assert counter.model.began.acquire(timeout=5)
    counter.index = CatalogueIndex((), 8, "b-1")
    counter.model.hold.set()
    asking.join(5)
    assert names(replies[0]) == MODEL_ORDER
