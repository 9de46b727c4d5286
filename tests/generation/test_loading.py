"""Loads of models: any number of threads may ask for one, and what else the process does is none the worse for it."""

import ast
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import service
import trainer
from service.catalog.trie import build_trie
from service.generation.backbone import load_backbone
from service.generation.engine import GenerationRequest
from service.generation.torch_engine import TorchModel
from tests.models import tiny_backbone


def test_models_that_threads_load_at_the_same_time_are_each_whole_and_so_is_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Number types differ, as those of a GPU's engine and of a text encoder on the CPU do."""
    for owner, name in ((PreTrainedModel, "tie_weights"), (torch, "linspace")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # were they left changed, put back for other tests
    before = (PreTrainedModel.tie_weights, torch.linspace, torch.get_default_dtype())
    kept = tiny_backbone()
    kept.model.save_pretrained(tmp_path)
    rows = kept.model.get_input_embeddings().weight

    def load(number: int) -> None:
        dtype = (torch.float32, torch.bfloat16)[number % 2]
        model = load_backbone(tmp_path, torch.device("cpu"), dtype).model
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert torch.equal(model.get_input_embeddings().weight, rows.to(dtype))

    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(load, range(24)):
            pass
    assert (PreTrainedModel.tie_weights, torch.linspace, torch.get_default_dtype()) == before
    load(0)


def test_a_search_is_the_same_while_a_model_of_another_number_type_is_loaded() -> None:
    backbone = tiny_backbone()
    backbone.model.get_input_embeddings().weight.mul_(0.01)  # small, so that each norm feels its epsilon
    random = np.random.default_rng(0)
    trie = build_trie(random.integers(0, 9, size=(50, 4)).astype(np.int16))
    asked = [GenerationRequest(trie.leaf_codes[:5], 10, np.empty(0, dtype=np.int64))]

    def search() -> list[float]:
        scores: list[float] = TorchModel(backbone, "b", None, least_beams=1).generate(asked, trie)[0].scores.tolist()
        return scores

    alone = search()
    torch.set_default_dtype(torch.bfloat16)  # as transformers does while it makes the model
    try:
        assert search() == alone
    finally:
        torch.set_default_dtype(torch.float32)


def test_every_load_waits_for_its_turn() -> None:
    """Whatever in the product loads a model or a tokenizer does it within `one_at_a_time`."""
    loads, outside = 0, []
    for package in (service, trainer):
        for path in Path(package.__path__[0]).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            turns = [one for one in ast.walk(tree) if isinstance(one, ast.With) and "one_at_a_time()" in _entered(one)]
            inside = {inner for turn in turns for inner in ast.walk(turn)}
            for call in filter(_is_load, ast.walk(tree)):
                loads += 1
                outside += [f"{path}:{call.lineno}"] if call not in inside else []  # type: ignore[attr-defined]
    assert loads >= 8
    assert outside == []


def _entered(block: ast.With) -> list[str]:
    return [ast.unparse(item.context_expr) for item in block.items]


def _is_load(node: ast.AST) -> bool:
    names = ("from_pretrained", "from_engine_args")
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names
