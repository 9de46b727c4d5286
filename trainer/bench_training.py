"""Our training step beside transformers + peft; over 300 lines, since both sides are set up to be compared.

How many examples a second a LoRA learns from, beside transformers + peft as commonly written.

An example is one target item behind the items before it. The peer takes each as a padded sequence of its own, with
PEFT's layers, transformers' forward pass and the loss over the whole vocabulary; ours takes all targets of a piece of
a user's history in one pass, with the loss over each level's codes. The peer steps every 32 examples, as the paper
trains, and ours once for all: it has more optimiser steps. Both run forward, backward and AdamW over the same
examples in turns in one process, so that whatever else the machine does falls on both. Gradients of A and B are
compared with PEFT's layers under one loss, in float32, at weights where both factors count.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from service.catalog.trie import CODES, LEVELS
from service.errors import InvalidRequest
from service.generation.backbone import Backbone, pick_device
from service.generation.prompt import Prompt
from service.generation.torch_engine import pad_prompts
from trainer.captured import CapturedPasses
from trainer.decoder import to_device
from trainer.examples import TrainingSequence
from trainer.execution import AS_IT_COMES, CAPTURING_PAYS, Execution, executing, plan
from trainer.fit import add_gradients
from trainer.flops import training_flops
from trainer.language_model import load_language_model
from trainer.language_source import SMOLLM2
from trainer.lora import TARGET_MODULES, LoraBackbone
from trainer.tiny import TinyConfig, low_precision_pays, new_tiny
from trainer.turns import in_turns

MODELS = ("tiny", SMOLLM2, "llama-1b-shape")
RANK, ALPHA, ITEMS, TARGETS = 8, 16, 20, 10
PEER_BATCH = 32  # examples in a step of the peer, as the paper trains
COMPARED = 8  # sequences whose gradients are compared
GIB = 2**30


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """batch: our sequences in a step, each with 10 targets. Medians over repeats; fewest, most: of the ratio of times.

    layers_speedup: beside PEFT's layers under our own batches and loss, which isolates the forward and backward pass.
    max_gradient_difference: in float32, relative to the largest. timed_gradient_difference: in the precision that is
    timed, ||ours - peer's|| / ||peer's||.
    mfu: floating-point operations of the tokens that ours really processes (trainer.flops; no padding, nothing computed
    twice) over what the device does in that time by the rate of a large product measured in this run. mfu_by_examples:
    with the operations that the examples would take one by one; above 1 where sharing their history saves that much.
    peer_mfu: of the peer, one by one, its loss over the vocabulary included. peak_gib: device memory while it runs,
    the other model left out; None on a CPU. first_step_s: with compiling.
    """

    model: str
    device: str
    dtype: str
    batch: int
    tokens_per_example: float
    peer_tokens_per_example: float
    ours_examples_per_s: float
    peer_examples_per_s: float
    speedup: float
    fewest: float
    most: float
    layers_speedup: float
    max_gradient_difference: float
    timed_gradient_difference: float
    tflops: float
    mfu: float
    mfu_by_examples: float
    peer_mfu: float
    peak_gib: float | None
    peer_peak_gib: float | None
    compiled: bool
    captured: bool
    first_step_s: float


def bench_training(
    hidden: int,
    layers: int,
    batch: int,
    seed: int,
    *,
    model: str = "tiny",
    device: str = "cpu",
    repeats: int = 7,
    compiled: bool = True,
) -> TrainingRow:
    """One sequence is 20 items, the last 10 of them targets. hidden, layers: of `tiny`; hidden a multiple of 32.

    model: one of MODELS. compiled: on a GPU. Raises InvalidRequest for another model, ConfigurationError for one whose
    package is missing.
    """
    chosen = pick_device(device)
    random = np.random.default_rng(seed)
    codes = random.integers(0, CODES, size=(2_000, LEVELS)).astype(np.int16)
    bare = _backbone(model, hidden, layers, seed, chosen)
    ours = LoraBackbone(bare, rank=RANK, alpha=ALPHA, dropout=0.0, seed=seed)
    peer, of_peer = _with_peft(_backbone(model, hidden, layers, seed, chosen))
    _same_values(ours, of_peer, seed)
    sequences = [TrainingSequence(random.integers(0, len(codes), ITEMS), ITEMS - TARGETS) for _ in range(batch)]
    compared = sequences[:COMPARED]
    low_precision = low_precision_pays(chosen)
    difference, _ = _gradient_difference(ours, peer, of_peer, compared, codes, AS_IT_COMES, low_precision=False)
    if chosen.type == "cuda" and model != "tiny":
        for backbone in (bare, peer):
            _halve(backbone)
    execution = plan(bare, sequences, batch, CAPTURING_PAYS, compiled=compiled)
    started = time.perf_counter()
    _, timed = _gradient_difference(ours, peer, of_peer, compared, codes, execution, low_precision=low_precision)
    first_step = time.perf_counter() - started
    apart = [
        TrainingSequence(sequence.rows[: place + 1], place)
        for sequence in sequences
        for place in range(sequence.first_target, ITEMS)
    ]
    parts = [apart[first : first + PEER_BATCH] for first in range(0, len(apart), PEER_BATCH)]
    mine, theirs = list(ours.parameters.values()), list(of_peer.values())

    pool = torch.cuda.graph_pool_handle() if execution.captured else None
    captured = CapturedPasses(ours.backbone, mine, (0.0, 0.0), low_precision, pool) if pool else None

    def together(backbone: Backbone, execution: Execution, passes: CapturedPasses | None = None) -> None:
        with executing(backbone, execution) as residual:
            add_gradients(backbone, sequences, codes, execution, (0.0, residual), low_precision, passes=passes)

    def common(part: Sequence[TrainingSequence]) -> None:
        with torch.autocast(chosen.type, torch.bfloat16, enabled=low_precision):
            loss = _common_loss(peer, part, codes)
        loss.backward()  # type: ignore[no-untyped-call]  # torch

    uncompiled = plan(peer, sequences, batch, 1, compiled=False)
    ways = [
        _way(
            ours.backbone, mine, [partial(together, ours.backbone, execution, captured)], in_place=captured is not None
        ),
        _way(peer, theirs, [partial(common, part) for part in parts]),
        _way(peer, theirs, [partial(together, peer, uncompiled)]),
    ]
    for _ in range(3):  # the second step is captured, the third replays it
        ways[0]()
    times = in_turns(ways, repeats)
    ratios = [slow / fast for fast, slow in zip(times[0], times[1], strict=True)]
    ours_s, peer_s = statistics.median(times[0]), statistics.median(times[1])
    tokens, work = training_flops(bare, sequences, codes)
    apart_tokens, apart_work = training_flops(bare, apart, codes)
    vocabulary = 4 * bare.model.config.hidden_size * bare.model.config.vocab_size * apart_tokens
    rate = peak_flops(chosen, low_precision)
    return TrainingRow(
        f"llama {hidden} x {layers}" if model == "tiny" else model,
        chosen.type,
        "bfloat16" if low_precision else "float32",
        batch,
        tokens / len(apart),
        apart_tokens / len(apart),
        len(apart) / ours_s,
        len(apart) / peer_s,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        statistics.median(slow / fast for fast, slow in zip(times[0], times[2], strict=True)),
        difference,
        timed,
        rate / 1e12,
        work / ours_s / rate,
        apart_work / ours_s / rate,
        (apart_work + vocabulary) / peer_s / rate,
        _peak(ways[0], chosen, peer),
        _peak(ways[1], chosen, bare),
        execution.compiled,
        captured is not None,
        first_step,
    )


def peak_flops(device: torch.device, low_precision: bool) -> float:
    """Operations a second of one large product, the best of a few."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if low_precision else torch.float32
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def product() -> None:
        for _ in range(5):
            left @ right
        _wait(device)

    return 5 * 2 * size**3 / min(in_turns([product], 5)[0])


def _backbone(model: str, hidden: int, layers: int, seed: int, device: torch.device) -> Backbone:
    """Float32 and frozen."""
    if model == "tiny":
        backbone = new_tiny(TinyConfig(hidden, layers, hidden // 32), seed)
    elif model == SMOLLM2:
        backbone = load_language_model(model, seed).backbone
    elif model == "llama-1b-shape":
        backbone = _billion(seed, device)
    else:
        raise InvalidRequest(f"--model {model!r} is not known; choose one of {', '.join(MODELS)}")
    nn.Module.to(backbone.model, device)
    backbone.model.requires_grad_(False)
    return backbone


def _billion(seed: int, device: torch.device) -> Backbone:
    """Llama-3.2-1B's shape with random weights; 20 items make a prompt of 180 tokens."""
    words = 128_256
    config = LlamaConfig(
        vocab_size=words + LEVELS * CODES,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    with device:
        model = LlamaForCausalLM(config)
    random = np.random.default_rng(seed)
    before, between, after = (random.integers(0, words, size=count) for count in (50, 1, 31))
    return Backbone(model, Prompt("instruction", words, before, between, after))


@torch.no_grad()
def _halve(backbone: Backbone) -> None:
    """Frozen weights in bfloat16; what trains stays in float32."""
    for parameter in backbone.model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    torch.cuda.empty_cache()


def _with_peft(backbone: Backbone) -> tuple[Backbone, dict[str, nn.Parameter]]:
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGET_MODULES), task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 for an attribute by its old name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        wrapped = get_peft_model(backbone.model, config)
    trained = {n.replace(".default", ""): p for n, p in wrapped.named_parameters() if p.requires_grad}
    return Backbone(backbone.model, backbone.prompt), trained


@torch.no_grad()
def _same_values(ours: LoraBackbone, peer: dict[str, nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in ours.parameters.items():
        parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
        peer[name].copy_(parameter)


def _gradient_difference(
    ours: LoraBackbone,
    peer: Backbone,
    of_peer: dict[str, nn.Parameter],
    sequences: Sequence[TrainingSequence],
    codes: NDArray[np.int16],
    execution: Execution,
    *,
    low_precision: bool,
) -> tuple[float, float]:
    """The largest difference over the largest entry, and the norm of all differences over that of all entries."""
    found: list[dict[str, Tensor]] = []
    for backbone, parameters in ((ours.backbone, ours.parameters), (peer, of_peer)):
        backbone.model.train()
        own = execution if backbone is ours.backbone else AS_IT_COMES
        with executing(backbone, own) as residual:
            add_gradients(backbone, sequences, codes, own, (0.0, residual), low_precision)
        found.append({name: p.grad for name, p in parameters.items() if p.grad is not None})
        for parameter in parameters.values():
            parameter.grad = None
    mine, theirs = found
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    differences = [mine[name] - theirs[name] for name in theirs]
    furthest = max(float(difference.abs().max()) for difference in differences)
    norms = [float(nn.utils.get_total_norm(list(group))) for group in (differences, theirs.values())]
    return furthest / largest, norms[0] / norms[1]


def _common_loss(peer: Backbone, examples: Sequence[TrainingSequence], codes: NDArray[np.int16]) -> Tensor:
    """The loss that transformers computes from labels, of prompts padded to one length."""
    whole = [
        np.concatenate([peer.prompt.encode(codes[example.rows[:-1]]), codes[example.rows[-1]] + peer.prompt.offsets])
        for example in examples
    ]
    tokens, lengths = pad_prompts(whole)
    place = torch.arange(tokens.shape[1])
    real = place < lengths[:, None]
    labels = tokens.masked_fill(~real | (place < lengths[:, None] - LEVELS), -100)
    tokens, mask, labels = (to_device(t.numpy(), peer.device) for t in (tokens, real.long(), labels))
    loss: Tensor = peer.model(input_ids=tokens, attention_mask=mask, labels=labels, use_cache=False).loss
    return loss


def _way(
    backbone: Backbone,
    parameters: list[nn.Parameter],
    gradients: Sequence[Callable[[], None]],
    *,
    in_place: bool = False,
) -> Callable[[], None]:
    """Over all examples once, an optimiser step each time gradients are there.

    in_place: gradients stay where they are in memory.
    """
    optimiser = torch.optim.AdamW(parameters, lr=1e-6, fused=True)

    def step() -> None:
        backbone.model.train()
        for add in gradients:
            optimiser.zero_grad(set_to_none=not in_place)
            add()
            optimiser.step()
        _wait(backbone.device)

    return step


def _peak(way: Callable[[], None], device: torch.device, other: Backbone) -> float | None:
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    way()
    beside = sum(p.nbytes for p in other.model.parameters())
    return float(torch.cuda.max_memory_allocated(device) - beside) / GIB


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
