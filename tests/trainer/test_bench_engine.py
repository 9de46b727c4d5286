"""The search benchmark compares like with like, on a random Llama and on a real language model."""

import pytest

from service.errors import InvalidRequest
from trainer.bench_engine import bench_engine


@pytest.mark.parametrize(
    ("model", "dtype", "tokens", "batches"),
    [("tiny", "float32", 13, [1, 2]), ("smollm2", "bfloat16", 71, [2])],  # minutes where the CPU has no bfloat16
)
def test_search_and_generate_find_the_same_items(model: str, dtype: str, tokens: int, batches: list[int]) -> None:
    rows = bench_engine(model, "cpu", batches, items=400, history=3, seed=0, repeats=1)

    assert [row.batch for row in rows] == batches
    for row in rows:
        assert (row.model, row.device, row.dtype, row.beams, row.prompt_tokens) == (model, "cpu", dtype, 10, tokens)
        assert row.same_items
        assert min(row.ours_ms, row.generate_ms, row.forward_ms, row.over_forward) > 0
        assert row.fewest <= row.speedup <= row.most


def test_an_unknown_model_is_refused_with_the_names() -> None:
    with pytest.raises(InvalidRequest, match="tiny, smollm2"):
        bench_engine("gpt", "cpu", [1], items=400, history=3, seed=0)
