"""Callers share batches, leave in time, and never hang."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from service.catalog.trie import Trie, build_trie
from service.errors import Unavailable
from service.generation.batching import Batcher
from service.generation.engine import Generated, GenerationRequest, ServedModel
from service.generation.torch_engine import TorchModel
from tests.models import tiny_backbone
from tests.worlds import eventually

TRIE = build_trie(np.arange(200, dtype=np.int16).reshape(50, 4))
MODEL = TorchModel(tiny_backbone(), "b-1", "a-1", least_beams=5)


def request(limit: int = 5) -> GenerationRequest:
    return GenerationRequest(np.array([[0, 1, 2, 3]], dtype=np.int16), limit, np.empty(0, dtype=np.int64))


class Gate:
    """Lends the model only while it is open, so that a test decides when a batch may start."""

    def __init__(self, model: ServedModel | None = MODEL) -> None:
        self.open = threading.Event()
        self._model = model

    @contextmanager
    def __call__(self) -> Iterator[ServedModel | None]:
        assert self.open.wait(10)
        yield self._model


def test_requests_that_wait_together_are_generated_together() -> None:
    gate, sizes = Gate(), []
    batcher = Batcher(gate, max_requests=8, max_queued=20, on_batch=sizes.append)
    batcher.start()
    futures = [batcher.ask(request(), TRIE, "b-1") for _ in range(9)]
    gate.open.set()
    answers = [f.result(10) for f in futures]
    batcher.stop()

    assert sum(sizes) == 9
    assert max(sizes) == 8
    assert {a.adapter_version for a in answers} == {"a-1"}
    assert all(np.array_equal(a.generated.leaves, answers[0].generated.leaves) for a in answers)


def test_a_full_queue_refuses_at_once_and_a_cancelled_request_is_dropped() -> None:
    gate, sizes = Gate(), []
    batcher = Batcher(gate, max_requests=1, max_queued=1, on_batch=sizes.append)
    waiting = batcher.ask(request(), TRIE, "b-1")
    with pytest.raises(Unavailable, match="full"):
        batcher.ask(request(), TRIE, "b-1")
    assert waiting.cancel()
    batcher.start()
    gate.open.set()
    batcher.stop()

    assert sizes == []
    with pytest.raises(Unavailable, match="stopping"):
        batcher.ask(request(), TRIE, "b-1")


@pytest.mark.parametrize(("model", "base_id"), [(None, "b-1"), (MODEL, "b-2")])
def test_without_a_model_of_the_base_the_caller_is_told(model: TorchModel | None, base_id: str) -> None:
    gate = Gate(model)
    gate.open.set()
    batcher = Batcher(gate, max_requests=4, max_queued=4)
    batcher.start()

    with pytest.raises(Unavailable, match="no model"):
        batcher.ask(request(), TRIE, base_id).result(10)
    batcher.stop()


def test_a_request_that_breaks_the_engine_fails_alone_and_the_next_one_is_answered() -> None:
    gate = Gate()
    gate.open.set()
    batcher = Batcher(gate, max_requests=4, max_queued=4)
    batcher.start()
    broken = GenerationRequest(np.array([[2000, 1, 2, 3]], dtype=np.int16), 5, np.empty(0, dtype=np.int64))

    with pytest.raises(IndexError):
        batcher.ask(broken, TRIE, "b-1").result(10)
    assert len(batcher.ask(request(), TRIE, "b-1").result(10).generated.leaves) == 5
    batcher.stop()


class Recorder:
    """A ServedModel that notes what it was asked together."""

    base_id, adapter_version = "b-1", "a-1"

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def generate(self, requests: Sequence[GenerationRequest], trie: Trie) -> list[Generated]:
        self.batches.append([request.limit for request in requests])
        return MODEL.generate(requests, trie)

    def close(self) -> None:
        """Nothing is held."""


def test_requests_of_unlike_beam_width_run_apart_the_oldest_first() -> None:
    model = Recorder()
    gate = Gate(model)
    gate.open.set()
    batcher = Batcher(gate, max_requests=8, max_queued=20, least_beams=5)
    futures = [batcher.ask(request(limit), TRIE, "b-1") for limit in (5, 20, 3, 20, 5)]
    batcher.start()
    found = [len(future.result(10).generated.leaves) for future in futures]
    batcher.stop()

    assert found == [5, 20, 3, 20, 5]
    assert model.batches == [[5, 3, 5], [20, 20]]


def test_of_a_crowd_half_is_taken_so_that_the_other_half_waits_while_replies_are_written() -> None:
    model = Recorder()
    gate = Gate(model)
    gate.open.set()
    batcher = Batcher(gate, max_requests=32, max_queued=64)
    futures = [batcher.ask(request(), TRIE, "b-1") for _ in range(32)]
    batcher.start()
    for future in futures:
        future.result(10)
    batcher.stop()

    assert [len(batch) for batch in model.batches] == [16, 16]


def test_a_request_that_is_past_its_deadline_is_not_computed() -> None:
    model = Recorder()
    gate = Gate(model)
    gate.open.set()
    batcher = Batcher(gate, max_requests=8, max_queued=20, monotonic=lambda: 100.0)
    late, early = batcher.ask(request(3), TRIE, "b-1", due=100.0), batcher.ask(request(4), TRIE, "b-1", due=100.1)
    batcher.start()

    with pytest.raises(TimeoutError):
        late.result(10)
    assert len(early.result(10).generated.leaves) == 4
    batcher.stop()
    assert model.batches == [[4]]


def test_a_batch_waits_for_a_request_that_is_on_its_way_but_not_for_long() -> None:
    model = Recorder()
    gate = Gate(model)
    gate.open.set()
    batcher = Batcher(gate, max_requests=8, max_queued=20)
    batcher.start()
    with batcher.coming():  # and it never asks
        assert len(batcher.ask(request(4), TRIE, "b-1").result(10).generated.leaves) == 4
    batcher.stop()


def test_a_request_that_would_be_answered_too_late_is_told_so_at_once() -> None:
    now = 0.0

    class Slow(Recorder):
        def generate(self, requests: Sequence[GenerationRequest], trie: Trie) -> list[Generated]:
            nonlocal now
            now += len(requests)  # a second each
            return super().generate(requests, trie)

    gate = Gate(Slow())
    gate.open.set()
    batcher = Batcher(gate, max_requests=4, max_queued=20, monotonic=lambda: now)
    batcher.start()
    first = batcher.ask(request(), TRIE, "b-1", due=0.5)  # nothing is known yet
    first.result(10)
    eventually(lambda: not batcher._searching)
    gate.open.clear()
    alone = batcher.ask(request(), TRIE, "b-1", due=now + 0.5)  # nobody else: it is tried, so that the pace is measured
    eventually(lambda: batcher.queued == 0)
    second = batcher.ask(request(), TRIE, "b-1", due=now + 3)
    third = batcher.ask(request(), TRIE, "b-1", due=now + 3)
    with pytest.raises(Unavailable, match="longer than the request can wait"):
        batcher.ask(request(), TRIE, "b-1", due=now + 3)
    patient = batcher.ask(request(), TRIE, "b-1", due=now + 4)
    gate.open.set()
    assert [len(one.result(10).generated.leaves) for one in (alone, second, third, patient)] == [5] * 4
    batcher.stop()
