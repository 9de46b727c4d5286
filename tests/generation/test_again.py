"""A search that was one of many is computed again by itself, to the last bit, when its batch's shape is given."""

import numpy as np
import pytest

from service.catalog.trie import build_trie
from service.generation.again import InShape
from service.generation.engine import Batch, Generated, GenerationRequest
from service.generation.torch_engine import TorchModel
from tests.models import tiny_backbone

RANDOM = np.random.default_rng(0)
CODES = RANDOM.integers(0, 256, (2_000, 4)).astype(np.int16)
TRIE = build_trie(CODES)
MODEL = TorchModel(tiny_backbone(), "b-1", "a-1", least_beams=10)


def request(items: int, excluded: int = 0) -> GenerationRequest:
    history = CODES[RANDOM.integers(0, len(CODES), items)]
    return GenerationRequest(history, 10, np.sort(RANDOM.choice(TRIE.leaves, excluded, replace=False)))


def bits(generated: Generated) -> tuple[bytes, bytes]:
    return generated.leaves.tobytes(), generated.scores.tobytes()


def shape(batch: Batch | None) -> tuple[int, int, int]:
    assert batch is not None
    return batch.size, batch.place, batch.longest


@pytest.mark.parametrize("lengths", [[3], [3, 3], [1, 20, 7], [20, 1, 1, 5, 5, 9, 2, 20, 3], [4] * 32])
def test_each_of_a_batch_comes_again_by_itself(lengths: list[int]) -> None:
    wanted = [request(items, excluded=place % 3) for place, items in enumerate(lengths)]
    together = MODEL.generate(wanted, TRIE)
    for one, answer in zip(wanted, together, strict=True):
        assert shape(answer.batch)[0] == len(lengths)
        again = InShape(MODEL, [shape(answer.batch)]).ask(one, TRIE, "b-1").result(0)
        assert bits(again.generated) == bits(answer)


def test_without_the_shape_the_last_bits_differ() -> None:
    """On this model and processor, at least one of twenty: so the shape is worth keeping."""
    wanted = [request(3) for _ in range(20)]
    together = MODEL.generate([*wanted, request(20)], TRIE)
    alone = [MODEL.generate([one], TRIE)[0] for one in wanted]
    assert any(bits(one) != bits(answer) for one, answer in zip(alone, together, strict=False))


def test_beam_widths_that_run_apart_say_their_own_shapes() -> None:
    narrow, wide = request(3), GenerationRequest(CODES[:2], 25, np.empty(0, dtype=np.int64))
    found = MODEL.generate([narrow, wide, narrow], TRIE)
    assert [shape(one.batch) for one in found] == [(2, 0, 3), (1, 0, 2), (2, 1, 3)]
