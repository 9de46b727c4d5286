"""How long a constrained beam search takes beside transformers' generate() and beside one bare forward pass.

The three run in turns in one process on the same model, prompts and catalogue, so that whatever else the machine does
falls on all of them. That search and generate() return the same items in the same order is checked under one score, in
float32.
"""

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from service.errors import InvalidRequest
from service.generation.backbone import Backbone, pick_device
from service.generation.engine import GenerationRequest
from service.generation.torch_engine import TorchModel
from trainer.bench_evaluation import random_backbone, random_catalogue
from trainer.generate_peer import GeneratePeer
from trainer.language_model import load_language_model
from trainer.tiny import TinyConfig
from trainer.turns import in_turns

MODELS = ("tiny", "smollm2")
BEAMS = 10


@dataclass(frozen=True, slots=True)
class EngineRow:
    """Medians over repeats of wall time a batch, in milliseconds. speedup: generate_ms / ours_ms, by pairs.

    over_forward: ours_ms / forward_ms, by pairs. fewest, most: of the speedup.
    """

    model: str
    device: str
    dtype: str
    batch: int
    beams: int
    prompt_tokens: int
    items: int
    ours_ms: float
    generate_ms: float
    forward_ms: float
    speedup: float
    fewest: float
    most: float
    over_forward: float
    same_items: bool


def bench_engine(
    model: str, device: str, batches: list[int], items: int, history: int, seed: int, *, repeats: int = 7
) -> list[EngineRow]:
    """model: one of MODELS. history: past items in each prompt.

    Raises InvalidRequest for another model or one whose package is missing.
    """
    chosen = pick_device(device)
    backbone = _backbone(model, chosen, seed)
    random = np.random.default_rng(seed)
    index = random_catalogue(items, random)
    trie = index.trie
    engine = TorchModel(backbone, "bench", None, least_beams=BEAMS)
    peer = GeneratePeer(backbone, trie, BEAMS)
    exact_engine, exact_peer = engine, peer
    if next(backbone.model.parameters()).dtype is not torch.float32:  # rounded scores tie, and ties have no order
        exact = Backbone(nn.Module.float(copy.deepcopy(backbone.model)), backbone.prompt)
        exact_engine, exact_peer = TorchModel(exact, "bench", None, BEAMS), GeneratePeer(exact, trie, BEAMS)
    rows = []
    for batch in batches:
        taken = [random.integers(0, items, size=history) for _ in range(batch)]
        requests = [GenerationRequest(index.codes[past], BEAMS, trie.excluded_leaves(past)) for past in taken]
        prompts = torch.randint(0, 100, (batch, len(backbone.prompt.encode(index.codes[:history]))), device=chosen)
        ours = [found.leaves.tolist() for found in exact_engine.generate(requests, trie)]
        theirs = exact_peer.leaves(requests, one_score=True)
        ways: list[Callable[[], object]] = [
            lambda: engine.generate(requests, trie),  # noqa: B023  # called within the turn
            lambda: peer.leaves(requests),  # noqa: B023
            lambda: _forward(backbone, prompts),  # noqa: B023
        ]
        own, slow, bare = in_turns(ways, repeats)
        speedups = [b / a for a, b in zip(own, slow, strict=True)]
        over = [a / b for a, b in zip(own, bare, strict=True)]
        rows.append(
            EngineRow(
                model,
                chosen.type,
                str(next(backbone.model.parameters()).dtype).removeprefix("torch."),
                batch,
                BEAMS,
                prompts.shape[1],
                items,
                1000 * statistics.median(own),
                1000 * statistics.median(slow),
                1000 * statistics.median(bare),
                statistics.median(speedups),
                min(speedups),
                max(speedups),
                statistics.median(over),
                all(a == b for a, b in zip(ours, theirs, strict=True)),
            )
        )
    return rows


@torch.inference_mode()
def _forward(backbone: Backbone, prompts: Tensor) -> None:
    """The least that any search must do: one pass over the prompts."""
    backbone.decoder(input_ids=prompts, use_cache=False)
    if prompts.is_cuda:
        torch.cuda.synchronize()


def _backbone(model: str, device: torch.device, seed: int) -> Backbone:
    if model == "smollm2":
        backbone = load_language_model(model, seed).backbone
        nn.Module.to(backbone.model, device, torch.bfloat16)
        return backbone
    if model == "tiny":
        backbone = random_backbone(TinyConfig(), seed)
        nn.Module.to(backbone.model, device)
        return backbone
    raise InvalidRequest(f"--model {model!r} is not known; choose one of {', '.join(MODELS)}")
