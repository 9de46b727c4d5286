"""What moved an item up, said in words, against scores of every history with one item left out."""

import asyncio
import math
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.catalog.index import CatalogueIndex, IndexedItem
from service.generation.batching import Answer
from service.generation.engine import Generated, GenerationRequest
from service.kit.db import Database
from service.recommend.compose import Ranked
from service.recommend.effects import AT_ONCE, Effects, LeaveOneOut, ordinal
from service.recommend.ranking import RankedRows
from service.recommend.schemas import FallbackReason, RecommendationRequest
from service.settings import Settings
from tests import worlds
from tests.built import BuiltWorld
from tests.recommend.shop import Shop, ids
from tests.recommend.test_recommender import Counter, counter, names

__all__ = ["counter"]  # the fixture

INDEX = CatalogueIndex(
    tuple(IndexedItem(name, name.upper(), (), True, (place, 0, 0, 0)) for place, name in enumerate("abcdef")), 1, "b-1"
)
WALK = ["i16", "i17", "i18", "i19"]


def effects(*without: list[float]) -> Effects:
    """Of items that score -1, -2, -3 after a history of a, b .. (latest first)."""
    return Effects(np.arange(len(without)), np.array([-1.0, -2.0, -3.0]), np.array(without))


def test_the_past_items_without_which_an_item_scores_least_are_named_with_its_place() -> None:
    found = effects([-1.0, -2.0 - math.log(3), -3.0], [-1.0, -2.5, -3.0], [-1.0, -2.2, -3.0])
    assert found.sentences(INDEX, 1) == [
        "because of «A» from your history: without it this would be 3.0 times less likely, "
        "3rd in this list instead of 2nd",
        "because of «B» from your history: without it this would be 1.6 times less likely",
    ]


def test_what_makes_little_difference_or_moves_an_item_down_is_not_named() -> None:
    assert effects([-1.05, -2.0, -3.0], [-0.5, -2.0, -3.0]).sentences(INDEX, 0) == []


def test_a_very_large_effect_is_rounded() -> None:
    assert "more than 1,000 times less likely, 3rd" in effects([-9.0, -2.0, -3.0]).sentences(INDEX, 0)[0]
    assert "20 times less likely" in effects([-1.0 - math.log(20), -2.0, -3.0]).sentences(INDEX, 0)[0]


def test_a_list_that_is_not_in_the_order_of_scores_names_no_places() -> None:
    spread = Effects(np.array([0]), np.array([-1.0, -3.0, -2.0]), np.array([[-9.0, -3.0, -2.0]]))
    assert "instead" not in spread.sentences(INDEX, 0)[0]


def test_places_are_said_as_people_say_them() -> None:
    said = [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 22, 100, 101, 111)]
    assert said == "1st 2nd 3rd 4th 11th 12th 13th 21st 22nd 100th 101st 111th".split()


class Asked:
    """A `generate` that keeps what it is asked, and answers as `version`; `late`: it has nothing."""

    def __init__(self, version: str | None = "v1", *, late: bool = False) -> None:
        self.requests: list[GenerationRequest] = []
        self.version, self.late = version, late
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(
        self, request: GenerationRequest, index: CatalogueIndex, base_id: str, due: float, *, candidate: bool = False
    ) -> tuple[Answer | None, FallbackReason]:
        self.requests.append(request)
        await self.go.wait()
        if self.late:
            return None, FallbackReason.DEADLINE
        assert request.within is not None
        scores = -np.arange(len(request.within), dtype=np.float32) - len(request.history)
        return Answer(Generated(request.within, scores), base_id, self.version), FallbackReason.NO_MODEL


RANKED = Ranked.by_model(RankedRows(np.array([4, 1]), np.array([-1.0, -2.0])), "b-1", "v1")
PROMPT = np.array([2, 0, 2, 3])


def measure(asked: Asked, timeout: float = 5.0, ranked: Ranked = RANKED) -> Effects | None:
    return asyncio.run(LeaveOneOut(asked, timedelta(seconds=timeout)).measure(INDEX, ranked, PROMPT, math.inf))


def test_each_past_item_is_left_out_once_wherever_it_stands() -> None:
    asked = Asked()
    found = measure(asked)
    assert found is not None
    assert found.left_out.tolist() == [3, 2, 0]
    assert [r.history[:, 0].tolist() for r in asked.requests] == [[2, 0, 2], [0, 3], [2, 2, 3]]
    assert [None if r.within is None else r.within.tolist() for r in asked.requests] == [[1, 4]] * 3
    assert found.without.tolist() == [[-4, -3], [-3, -2], [-4, -3]]  # of rows 4 and 1, in their order


@pytest.mark.parametrize("asked", [Asked("v2"), Asked(None), Asked(late=True)])
def test_without_an_answer_of_the_same_model_nothing_is_said(asked: Asked) -> None:
    assert measure(asked) is None


def test_it_can_be_switched_off_and_needs_a_model_and_a_list() -> None:
    empty = Ranked.by_model(RankedRows(np.empty(0, np.int64), np.empty(0)), "b-1", "v1")
    asked = Asked()
    assert measure(asked, 0) is None
    assert measure(asked, ranked=empty) is None
    assert asked.requests == []


def test_only_a_few_replies_are_explained_so_at_a_time() -> None:
    async def crowd() -> list[Effects | None]:
        asked = Asked()
        asked.go.clear()
        left_out = LeaveOneOut(asked, timedelta(seconds=5))
        tasks = [asyncio.ensure_future(left_out.measure(INDEX, RANKED, PROMPT, math.inf)) for _ in range(AT_ONCE + 2)]
        await asyncio.sleep(0)
        asked.go.set()
        await asyncio.gather(*tasks)
        return [task.result() for task in tasks] + [await left_out.measure(INDEX, RANKED, PROMPT, math.inf)]

    found = asyncio.run(crowd())
    assert [one is not None for one in found] == [True] * AT_ONCE + [False] * 2 + [True]


def test_a_reply_whose_reasons_are_late_has_those_that_need_no_model(counter: Counter) -> None:
    counter.settings = counter.settings.model_copy(update={"explain_timeout": timedelta(seconds=0.05)})
    assert counter.model is not None
    model, answer = counter.model, counter.model.generate

    def slow_when_explaining(requests, trie):  # type: ignore[no-untyped-def]  # as the model's own
        if any(request.within is not None for request in requests):
            model.hold.clear()
        return answer(requests, trie)

    model.generate = slow_when_explaining  # type: ignore[method-assign]  # a model that is slow from then on
    reply = counter.recommender().ask(RecommendationRequest(history=["a", "b"], explain=True, include_seen=True))
    model.hold.set()
    assert names(reply) == ["d", "c", "b", "a"]
    assert [len(item.reasons or []) for item in reply.items] == [0, 0, 1, 1]  # close to itself


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path / "home",
        database_url=database_url,
        log_level="WARNING",
        poll_interval=0.05,
        request_deadline=timedelta(seconds=60),  # the machine may be busy
        explain_timeout=timedelta(seconds=60),
        beams=64,
        threads=1,
    )


def test_the_words_are_those_of_the_referees_scores(
    built_world: BuiltWorld, settings: Settings, database: Database, app: FastAPI, admin: TestClient
) -> None:
    shop = Shop(app, admin, built_world.copy_into(database, settings.artifacts_dir))
    worlds.eventually(lambda: shop.served() == shop.built.adapter_version)

    reply = shop.ask(history=WALK, explain=True, limit=8)

    listed = ids(reply)
    version = shop.built.adapter_version
    whole = shop.referee(version, WALK)
    without = {past: shop.referee(version, [item for item in WALK if item != past]) for past in WALK}
    titles = {item["item_id"]: item["title"] for item in worlds.items()}
    said = 0
    for place, item in enumerate(reply["items"]):
        drops = {past: whole[item["item_id"]] - scores[item["item_id"]] for past, scores in without.items()}
        most = sorted(drops, key=lambda past: -drops[past])[:2]
        own = [reason for reason in item["reasons"] if reason.startswith("because of")]
        assert len(own) == sum(drops[past] >= math.log(1.1) for past in most)
        for past, reason in zip(most, own, strict=False):
            said += 1
            assert f"«{titles[past]}»" in reason
            then = 1 + sum(without[past][other] > without[past][item["item_id"]] for other in listed)
            assert (f"{ordinal(then)} in this list instead of {ordinal(place + 1)}" in reason) == (then > place + 1)
    assert said > 0
