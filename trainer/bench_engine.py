"""A search beside generate() and a bare forward pass; over 300 lines, since all ways are timed in one run.

The three run in turns in one process on the same model, prompts and catalogue, so that whatever else the machine does
falls on all of them. That search and generate() return the same items in the same order is checked under one score, in
float32. On a GPU search and forward pass are compiled and captured, each bucket before its turn.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from service.catalog.trie import CODES, LEVELS, Trie
from service.errors import InvalidRequest
from service.generation.backbone import Backbone, pick_device
from service.generation.blocks import Blocks
from service.generation.engine import GenerationRequest
from service.generation.graphs import Graphs, Sizes, capture, stream_on
from service.generation.llama import pack
from service.generation.program import Inputs, Weights, prefill
from service.generation.prompt import Prompt
from service.generation.torch_engine import TorchModel
from trainer.bench_evaluation import random_backbone, random_catalogue
from trainer.generate_peer import GeneratePeer
from trainer.language_model import load_language_model
from trainer.tiny import TinyConfig
from trainer.turns import in_turns

HISTORY = {"tiny": 20, "smollm2": 20, "llama-1b-shape": 24}  # past items in a prompt: 81, 98 and 180 tokens
MODELS = tuple(HISTORY)
PEER_BATCH = 16  # generate() takes a quarter of a second there on an H100, and more than its memory is worth above
LLAMA_TEXT = (41, 1, 20)  # fixed tokens before, between and behind the items, as the paper's prompt has about
LLAMA_VOCABULARY = 128_256
COPIED = 1 << 30  # bytes


@dataclass(frozen=True, slots=True)
class EngineRow:
    """Medians over repeats of wall time a batch, in milliseconds; None: not measured.

    ours_ms: from requests to answers, what all prompts begin with read before. whole_prompt_ms: that read with each
    prompt. forward_ms: one pass over the whole prompts; on a GPU ours, compiled and captured; forward_eager_ms:
    transformers'. floor_ms: one such pass and three of the beams at the peak rates that this device showed in this run.
    speedup: generate_ms / ours_ms, over_forward: ours_ms / forward_ms, by pairs. fewest, most: of the speedup.
    capture_s: to compile and capture this bucket.
    """

    model: str
    device: str
    dtype: str
    batch: int
    beams: int
    prompt_tokens: int
    shared_tokens: int
    items: int
    ours_ms: float
    whole_prompt_ms: float | None
    generate_ms: float | None
    forward_ms: float
    forward_eager_ms: float
    floor_ms: float | None
    requests_per_s: float
    speedup: float | None
    fewest: float | None
    most: float | None
    over_forward: float
    same_items: bool | None
    capture_s: float | None


@dataclass(frozen=True, slots=True)
class Peak:
    """operations and bytes a second, of a large matrix product and of a large copy."""

    operations: float
    bytes: float


def bench_engine(
    model: str,
    device: str,
    batches: list[int],
    items: int,
    history: int | None,
    seed: int,
    *,
    beams: tuple[int, ...] = (10,),
    peer: bool = True,
    compiled: bool = True,
    repeats: int = 7,
) -> list[EngineRow]:
    """model: one of MODELS. history: past items in each prompt (default: HISTORY). peer: run generate() too.

    compiled: on a GPU, compile the forward pass before it is captured.
    Raises InvalidRequest for another model or one whose package is missing.
    """
    chosen = pick_device(device)
    backbone = _backbone(model, chosen, seed)
    history = HISTORY[model] if history is None else history
    random = np.random.default_rng(seed)
    index = random_catalogue(items, random)
    trie, prompt = index.trie, backbone.prompt
    tokens = prompt.length(history)
    blocks = Blocks.best(chosen) if compiled else Blocks(compiled=False)
    peak = _peak(backbone) if chosen.type == "cuda" else None
    exact = backbone
    if peer and next(backbone.model.parameters()).dtype is not torch.float32:
        exact = Backbone(nn.Module.float(copy.deepcopy(backbone.model)), prompt)  # rounded scores tie: no order
    rows = []
    for batch in batches:
        past = [random.integers(0, items, size=history) for _ in range(batch)]
        forward = _forward(backbone, batch, tokens, blocks)
        for width in beams:
            requests = [GenerationRequest(index.codes[p], width, trie.excluded_leaves(p)) for p in past]
            began = time.monotonic()
            engine = _model(backbone, batch, history, width, blocks)
            captured = time.monotonic() - began
            ways = {"ours": _search(engine, requests, trie), **forward}
            if len(prompt.shared):
                whole = _model(backbone, batch, history, width, blocks, share_prefix=False)
                ways["whole"] = _search(whole, requests, trie)
            same = None
            if peer and batch <= PEER_BATCH:
                generate = GeneratePeer(backbone, trie, width)
                ways["generate"] = _generate(generate, requests)
                plain = engine if exact is backbone else _model(exact, batch, history, width, Blocks(compiled=False))
                theirs = GeneratePeer(exact, trie, width).leaves(requests, one_score=True)
                same = [found.leaves.tolist() for found in plain.generate(requests, trie)] == theirs
            times = dict(zip(ways, in_turns(list(ways.values()), repeats), strict=True))
            own, slow = times["ours"], times.get("generate")
            medians = {way: 1000 * statistics.median(found) for way, found in times.items()}
            speedups = [b / a for a, b in zip(own, slow, strict=True)] if slow else None
            rows.append(
                EngineRow(
                    model=model,
                    device=chosen.type if peak is None else torch.cuda.get_device_name(chosen),
                    dtype=str(next(backbone.model.parameters()).dtype).removeprefix("torch."),
                    batch=batch,
                    beams=width,
                    prompt_tokens=tokens,
                    shared_tokens=len(prompt.shared),
                    items=items,
                    ours_ms=medians["ours"],
                    whole_prompt_ms=medians.get("whole"),
                    generate_ms=medians.get("generate"),
                    forward_ms=medians.get("forward", medians["eager"]),
                    forward_eager_ms=medians["eager"],
                    floor_ms=None if peak is None else _floor_ms(backbone, batch, tokens, width, peak),
                    requests_per_s=1000 * batch / medians["ours"],
                    speedup=None if speedups is None else statistics.median(speedups),
                    fewest=None if speedups is None else min(speedups),
                    most=None if speedups is None else max(speedups),
                    over_forward=statistics.median(
                        a / b for a, b in zip(own, times.get("forward", times["eager"]), strict=True)
                    ),
                    same_items=same,
                    capture_s=captured if chosen.type == "cuda" else None,
                )
            )
    return rows


def _model(
    backbone: Backbone, batch: int, history: int, width: int, blocks: Blocks, *, share_prefix: bool = True
) -> TorchModel:
    """The engine's model; on a GPU with the one bucket captured that these requests need."""
    if backbone.device.type != "cuda":
        return TorchModel(backbone, "bench", None, width, share_prefix=share_prefix)
    graphs = Graphs(backbone, Sizes((batch,), (history,), (width,)), blocks, share_prefix=share_prefix)
    slot = graphs.take(backbone)
    return TorchModel(backbone, "bench", None, width, None if slot is None else (graphs, slot))


def _search(model: TorchModel, requests: list[GenerationRequest], trie: Trie) -> Callable[[], object]:
    return lambda: model.generate(requests, trie)


def _generate(peer: GeneratePeer, requests: list[GenerationRequest]) -> Callable[[], object]:
    return lambda: peer.leaves(requests)


def _forward(backbone: Backbone, batch: int, tokens: int, blocks: Blocks) -> dict[str, Callable[[], object]]:
    """The least that any search must do, one pass over the prompts: of transformers, and on a GPU ours as a graph."""
    device = backbone.device
    prompts = torch.randint(0, 100, (batch, tokens), device=device)

    @torch.inference_mode()
    def eager() -> None:
        backbone.decoder(input_ids=prompts, use_cache=False)
        if device.type == "cuda":
            torch.cuda.synchronize()

    llama = pack(backbone.model)
    if device.type != "cuda" or llama is None:
        return {"eager": eager}
    positions = math.ceil(tokens / 16) * 16
    weights = Weights.of(backbone, llama, None, positions)
    like = llama.layers[0].qkv
    keys = torch.zeros(len(llama.layers), batch, llama.kv_heads, positions, llama.size, dtype=like.dtype, device=device)
    values = torch.zeros_like(keys)
    whole = torch.full((batch,), tokens, dtype=torch.int32, device=device)
    inputs = Inputs(prompts.int(), whole, torch.empty(0, dtype=torch.int32, device=device))

    @torch.no_grad()
    def once() -> None:
        prefill(weights, blocks, inputs, keys, values)

    stream = stream_on(device)
    assert stream is not None  # noqa: S101  # on a GPU
    graph = capture(once, stream)

    def replay(_kept: Callable[[], None] = once) -> None:  # a graph does not hold the memory that it works on
        graph.replay()
        torch.cuda.synchronize()

    return {"eager": eager, "forward": replay}


def _peak(backbone: Backbone) -> Peak:
    device, dtype, side = backbone.device, next(backbone.model.parameters()).dtype, 8192
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    x = torch.randn(COPIED // 4, device=device)
    y = torch.empty_like(x)
    product, copied = (_device_seconds(way) for way in (lambda: torch.mm(a, b), lambda: y.copy_(x)))
    return Peak(2 * side**3 / product, 2 * COPIED / copied)


def _device_seconds(way: Callable[[], object], repeats: int = 10) -> float:
    way()
    times = []
    for _ in range(repeats):
        first, last = (torch.Event("cuda", enable_timing=True) for _ in range(2))
        first.record()
        way()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) / 1000)
    return statistics.median(times)


def _floor_ms(backbone: Backbone, batch: int, tokens: int, width: int, peak: Peak) -> float:
    """Each pass at the rate that binds it: operations of its products, or bytes of the weights and the cache."""
    config = backbone.model.config
    blocks = [p for name, p in backbone.decoder.named_parameters() if name.startswith("layers.")]
    weights, item = sum(p.numel() for p in blocks), blocks[0].element_size()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    seconds: float = 0
    for queries, keys in [(tokens, tokens / 2), *((width, tokens + depth * width) for depth in range(1, LEVELS))]:
        attention = 4 * config.num_hidden_layers * heads * size * queries * keys
        head = 2 * CODES * config.hidden_size * (1 if queries == tokens else width)
        cache = 2 * config.num_hidden_layers * config.num_key_value_heads * size * keys * item
        operations = batch * (2 * weights * queries + attention + head)
        seconds += max(operations / peak.operations, (weights * item + batch * cache) / peak.bytes)
    return 1000 * seconds


def _backbone(model: str, device: torch.device, seed: int) -> Backbone:
    if model == "smollm2":
        backbone = load_language_model(model, seed).backbone
        nn.Module.to(backbone.model, device, torch.bfloat16)
        return backbone
    if model == "tiny":
        backbone = random_backbone(TinyConfig(), seed)
        nn.Module.to(backbone.model, device)
        return backbone
    if model == "llama-1b-shape":
        return _llama_shape(device, seed)
    raise InvalidRequest(f"--model {model!r} is not known; choose one of {', '.join(MODELS)}")


def _llama_shape(device: torch.device, seed: int) -> Backbone:
    """Random bfloat16 weights in the shape of Llama-3.2-1B, semantic-ID tokens, fixed text as long as the paper's."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=LLAMA_VOCABULARY + LEVELS * CODES,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    with device:
        model = LlamaForCausalLM(config)
    model.requires_grad_(False)
    model.train(False)
    nn.Module.to(model, torch.bfloat16)
    random = np.random.default_rng(seed)
    before, between, after = (random.integers(0, LLAMA_VOCABULARY, size=n) for n in LLAMA_TEXT)
    return Backbone(model, Prompt("instruction", LLAMA_VOCABULARY, before, between, after))
