"""A batch is of one model; neither arm waits for ever; a candidate that is missing or fails costs nobody an answer."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

import numpy as np
import pytest

from service.catalog.trie import Trie, build_trie
from service.errors import Unavailable
from service.generation.batching import SPARES, Answer, Batcher
from service.generation.engine import Generated, GenerationRequest
from tests.worlds import eventually

TRIE = build_trie(np.arange(40, dtype=np.int16).reshape(10, 4))
ASK = GenerationRequest(np.array([[0, 1, 2, 3]], dtype=np.int16), 2, np.empty(0, dtype=np.int64))


class Model:
    """Answers with its name as score; remembers the sizes of its batches."""

    def __init__(self, name: str, order: list[str], base_id: str = "b-1") -> None:
        self.adapter_version, self.base_id, self._order = name, base_id, order
        self.broken = False
        self.hold = threading.Event()
        self.hold.set()

    def generate(self, requests: Sequence[GenerationRequest], trie: Trie) -> list[Generated]:
        assert self.hold.wait(10)
        if self.broken:
            raise RuntimeError("out of memory")
        self._order += [self.adapter_version] * len(requests)
        return [Generated(np.arange(2), np.zeros(2, np.float32)) for _ in requests]

    def close(self) -> None:
        """Nothing is held."""


class House:
    """A batcher over both models. `order`: which model answered, request by request."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.sizes: list[int] = []
        self.failures: list[Exception] = []
        self.control, self.candidate = Model("control", self.order), Model("canary", self.order)
        self.on_trial: Model | None = self.candidate
        self.batcher = Batcher(
            self._lend_control,
            4,
            100,
            on_batch=self.sizes.append,
            lease_candidate=self._lend_candidate,
            on_candidate_failure=self.failures.append,
        )

    @contextmanager
    def _lend_control(self) -> Iterator[Model]:
        yield self.control

    @contextmanager
    def _lend_candidate(self) -> Iterator[Model | None]:
        yield self.on_trial

    def ask(self, *, candidate: bool) -> "Future[Answer]":
        return self.batcher.ask(ASK, TRIE, "b-1", candidate=candidate)


@pytest.fixture
def house() -> Iterator[House]:
    made = House()
    yield made
    made.batcher.stop()


def test_each_is_answered_by_the_model_it_asked_and_batches_are_of_one(house: House) -> None:
    arms = [number % 3 == 0 for number in range(30)]
    futures = [house.ask(candidate=arm) for arm in arms]
    house.batcher.start()
    answers = [future.result(10) for future in futures]
    assert [answer.adapter_version for answer in answers] == ["canary" if arm else "control" for arm in arms]
    assert sum(house.sizes) == 30
    ends = np.cumsum(house.sizes).tolist()
    batches = [house.order[end - size : end] for end, size in zip(ends, house.sizes, strict=True)]
    assert {len(set(batch)) for batch in batches} == {1}


def test_the_oldest_is_next_whichever_arm_it_is_in(house: House) -> None:
    """One canary among many: it is answered in the batch after the one that left it behind."""
    futures = [house.ask(candidate=number == 1) for number in range(13)]
    house.batcher.start()
    for future in futures:
        future.result(10)
    assert house.order[:5] == ["control"] * 4 + ["canary"]


def test_without_a_candidate_control_answers(house: House) -> None:
    house.on_trial = None
    house.batcher.start()
    assert house.ask(candidate=True).result(10).adapter_version == "control"
    house.on_trial = Model("canary", house.order, base_id="b-2")
    assert house.ask(candidate=True).result(10).adapter_version == "control"
    assert house.failures == []


def test_when_the_candidate_fails_control_answers_and_the_failure_is_told(house: House) -> None:
    house.candidate.broken = True
    house.batcher.start()
    assert house.ask(candidate=True).result(10).adapter_version == "control"
    eventually(lambda: len(house.failures) == 1)
    assert house.ask(candidate=False).result(10).adapter_version == "control"


def test_a_request_that_breaks_both_is_not_the_candidates_fault(house: House) -> None:
    house.candidate.broken = house.control.broken = True
    house.batcher.start()
    with pytest.raises(RuntimeError, match="memory"):
        house.ask(candidate=True).result(10)
    house.control.broken = False
    house.ask(candidate=False).result(10)
    assert house.failures == []


def test_a_spare_search_is_done_when_nobody_waits_and_never_before_somebody_who_does(house: House) -> None:
    spare = house.batcher.spare(ASK, TRIE, "b-1")
    asked = house.ask(candidate=False)
    house.batcher.start()
    assert (asked.result(10).adapter_version, spare.result(10).adapter_version) == ("control", "canary")
    assert house.order == ["control", "canary"]
    assert house.sizes == [1]


def test_a_spare_search_waits_for_those_on_their_way(house: House) -> None:
    house.batcher.start()
    with house.batcher.coming():
        spare = house.batcher.spare(ASK, TRIE, "b-1")
        house.ask(candidate=False).result(10)
        assert not spare.done()
    assert spare.result(10).adapter_version == "canary"


def test_only_so_many_spare_searches_wait_and_none_outlives_the_batcher(house: House) -> None:
    waiting = [house.batcher.spare(ASK, TRIE, "b-1") for _ in range(SPARES)]
    with pytest.raises(Unavailable, match="busy"):
        house.batcher.spare(ASK, TRIE, "b-1")
    house.candidate.hold.clear()
    house.batcher.start()
    stopping = threading.Thread(target=house.batcher.stop)
    stopping.start()
    house.candidate.hold.set()
    stopping.join(10)
    assert all(future.done() for future in waiting)


def test_a_spare_search_that_fails_is_told_and_one_without_a_candidate_is_not(house: House) -> None:
    house.batcher.start()
    house.on_trial = None
    with pytest.raises(Unavailable, match="no candidate"):
        house.batcher.spare(ASK, TRIE, "b-1").result(10)
    assert house.failures == []
    house.on_trial, house.candidate.broken = house.candidate, True
    with pytest.raises(RuntimeError):
        house.batcher.spare(ASK, TRIE, "b-1").result(10)
    eventually(lambda: len(house.failures) == 1)
    assert house.ask(candidate=False).result(10).adapter_version == "control"
