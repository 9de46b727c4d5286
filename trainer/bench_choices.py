"""What filters, diversity, exploration, explanations and "more like this" cost beside a plain recommendation.

The recommender and the batcher of the service, with a model on this CPU and a record that is stored at once: what is
compared is what they do, not the store or HTTP.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import numpy as np

from service.catalog.index import CatalogueIndex
from service.generation.batching import Batcher
from service.generation.engine import GenerationRequest
from service.generation.torch_engine import TorchModel
from service.recommend.history import UserPast
from service.recommend.ranking import Float64, rank_leaves
from service.recommend.schemas import Filters, RecommendationRequest
from service.recommend.service import Recommender
from service.recommend.similar import SimilarItems
from service.settings import Settings
from trainer.bench_evaluation import random_backbone, random_catalogue
from trainer.tiny import TinyConfig

LIMIT, PAST = 10, 20
SHARES = {"one item": 0, "1 % of the items": 100, "half of the items": 2}
"""Name of a category -> every how many items have it; 0: only the last one."""


@dataclass(frozen=True, slots=True)
class ChoiceRow:
    """milliseconds: median over repeats of one request, alone; fewest, most: over the repeats.

    cpu_ms: median of the processor time that it took, of all threads, which a busy machine does not change as much.
    """

    way: str
    milliseconds: float
    fewest: float
    most: float
    cpu_ms: float


def bench_choices(hidden: int, layers: int, items: int, seed: int, *, repeats: int = 9) -> list[ChoiceRow]:
    """hidden, layers: of a random Llama. items: of the catalogue, each with a semantic ID of its own."""
    return asyncio.run(_measure(hidden, layers, items, seed, repeats))


async def _measure(hidden: int, layers: int, items: int, seed: int, repeats: int) -> list[ChoiceRow]:
    random = np.random.default_rng(seed)
    index = _catalogue(items, random)
    popularity = np.where(random.random(items) < 0.9, random.random(items), 0.0)  # a tenth is cold
    model = TorchModel(random_backbone(TinyConfig(hidden=hidden, layers=layers), seed), "bench", None, LIMIT)
    settings = Settings(request_deadline=timedelta(minutes=1), explain_timeout=timedelta(minutes=1))

    @contextmanager
    def lease() -> Iterator[TorchModel]:
        yield model

    batcher = Batcher(lease, settings.batch_max_requests, 1_000, least_beams=LIMIT)
    batcher.start()
    recommender, similar = _shop(settings, index, popularity, batcher)
    history = [index.items[row].item_id for row in random.integers(0, items, PAST).tolist()]
    ask = partial(_ask, recommender, history)
    ways: dict[str, Callable[[], Awaitable[object]]] = {"plain": ask}
    for name in SHARES:
        ways[f"filter: {name}"] = partial(ask, filters=Filters(category=name))
    ways["filter: one item, by exclusions"] = partial(_by_exclusions, index, model, popularity, history)
    ways["filter: one item, relaxed"] = partial(ask, filters=Filters(category="one item"), filter_mode="relaxed")
    ways["diversity 0.5"] = partial(ask, diversity=0.5)
    ways["exploration 0.2"] = partial(ask, exploration=0.2)
    ways[f"explain, {PAST} past items"] = partial(ask, explain=True)
    ways["more like this"] = partial(similar.similar, history[0], LIMIT, Filters())
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    worked: dict[str, list[float]] = {way: [] for way in ways}
    try:
        for turn in range(repeats + 1):  # in turns, as trainer.turns does; the first is not counted
            for way, run in ways.items():
                started, before = time.perf_counter(), time.process_time()
                await run()
                if turn:
                    seconds[way].append(time.perf_counter() - started)
                    worked[way].append(time.process_time() - before)
    finally:
        batcher.stop()
    return [
        ChoiceRow(
            way,
            1000 * statistics.median(own),
            1000 * min(own),
            1000 * max(own),
            1000 * statistics.median(worked[way]),
        )
        for way, own in seconds.items()
    ]


def _shop(
    settings: Settings, index: CatalogueIndex, popularity: Float64, batcher: Batcher
) -> tuple[Recommender, SimilarItems]:
    recommender = Recommender(
        settings=settings,
        clock=lambda: datetime.now(UTC),
        index=lambda: index,
        popularity=lambda snapshot: popularity,
        batcher=batcher,
        read_past=lambda user: _done(UserPast((), ())),
        record=lambda row: _done(None),
        active_base=lambda: "bench",
        trained_through=lambda base_id, version: None,
        interaction=lambda: 1e-9,
    )
    similar = SimilarItems(
        settings,
        index=lambda: index,
        popularity=lambda snapshot: popularity,
        generate=recommender.generate,
        model_info=recommender.model_info,
        active_base=lambda: "bench",
    )
    return recommender, similar


async def _ask(recommender: Recommender, history: list[str], **wanted: Any) -> None:
    asked: Mapping[str, Any] = {"history": history, "include_seen": True, "limit": LIMIT, **wanted}
    reply = await recommender.recommend(RecommendationRequest(**asked))
    assert reply.strategy == "base", reply.fallback_reason  # noqa: S101  # else something else was timed


async def _by_exclusions(index: CatalogueIndex, model: TorchModel, popularity: Float64, history: list[str]) -> None:
    """The same filter with everything else named as excluded, which is how it would be without a choice of leaves."""
    wanted = np.zeros(len(index.items), dtype=np.bool_)
    wanted[index.rows_by_category["one item"]] = True
    excluded, prompt = np.flatnonzero(~wanted), index.with_codes(index.rows(history))
    request = GenerationRequest(index.codes[prompt], LIMIT, index.trie.excluded_leaves(excluded))
    rank_leaves(model.generate([request], index.trie)[0], index.trie, popularity, excluded, LIMIT)


def _catalogue(items: int, random: np.random.Generator) -> CatalogueIndex:
    """Random codes, and categories of the sizes in SHARES."""
    plain = random_catalogue(items, random)
    made = [
        replace(
            item, categories=tuple(n for n, every in SHARES.items() if (row % every if every else items - 1 - row) == 0)
        )
        for row, item in enumerate(plain.items)
    ]
    return CatalogueIndex(tuple(made), 1, "bench").load()


def _done(value: Any) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(value)
    return future
