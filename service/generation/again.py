"""A search computed again in the shape that it had: as many prompts, as long."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from service.catalog.trie import Trie
from service.generation.batching import Answer, Batcher
from service.generation.engine import GenerationRequest, ServedModel

Question = tuple[int, int, float]


def question_of(request: GenerationRequest) -> Question:
    """Tells the searches of one list apart: leaves that it may return (-1: all), leaves left out, penalty."""
    return -1 if request.within is None else len(request.within), len(request.excluded), request.penalty


class InShape(Batcher):
    """Answers at once and alone, among prompts that only fill the place of those that were there."""

    def __init__(self, model: ServedModel | None, shapes: Sequence[Sequence[float]]) -> None:
        """shapes: [size, place, longest] of a Batch, which all plain searches had, or that and the question_of each.

        A search that is not among them is computed alone.
        """
        super().__init__(_nobody, 1, 1)
        self._model = model
        self._plain = next((shape for shape in shapes if len(shape) == 3), None)
        self._shapes = {tuple(shape[3:]): shape for shape in shapes if len(shape) > 3}

    def ask(
        self, request: GenerationRequest, trie: Trie, base_id: str, due: float = 0.0, *, candidate: bool = False
    ) -> "Future[Answer]":
        assert self._model is not None  # noqa: S101  # without one there is no active base, and nobody asks
        shape = self._shapes.get(question_of(request)) or (self._plain if request.is_plain else None)
        size, place, longest = map(int, shape[:3]) if shape else (1, 0, len(request.history))
        # Scores depend on how long the others are, not on what they say; one that excludes as much takes the same way.
        batch = [replace(request, history=np.resize(request.history, (longest, 4)))] * size
        batch[place] = request
        future: Future[Answer] = Future()
        generated = self._model.generate(batch, trie)[place]
        future.set_result(Answer(generated, self._model.base_id, self._model.adapter_version))
        return future


@contextmanager
def _nobody() -> Iterator[ServedModel | None]:
    yield None
