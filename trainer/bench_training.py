"""How many examples a second a LoRA learns from: our training step beside transformers + peft as commonly written.

An example is one target item behind the items before it. The peer takes each as a padded sequence of its own, with
PEFT's layers, transformers' forward pass and the loss over the whole vocabulary; ours takes all targets of a piece of
a user's history in one pass, with the loss over each level's codes. The peer steps every 32 examples, as the paper
trains, and ours once for all: it has more optimiser steps. Both run forward, backward and AdamW over the same
examples in turns in one process, so that whatever else the machine does falls on both. Gradients of A and B are
compared with PEFT's layers under one loss, in float32, at weights where both factors count.
"""

import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from service.catalog.trie import CODES, LEVELS
from service.generation.backbone import Backbone
from service.generation.torch_engine import pad_prompts
from trainer.examples import TrainingSequence
from trainer.fit import sequence_loss
from trainer.lora import TARGET_MODULES, LoraBackbone
from trainer.tiny import TinyConfig, low_precision_pays, new_tiny
from trainer.turns import in_turns

RANK, ALPHA, ITEMS, TARGETS = 8, 16, 20, 10
PEER_BATCH = 32  # examples in a step of the peer, as the paper trains


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """batch: our sequences in a step, each with 10 targets. Medians over repeats; fewest, most: of the ratio of times.

    layers_speedup: beside PEFT's layers under our own batches and loss, which isolates the forward and backward pass.
    max_gradient_difference: relative to the largest.
    """

    model: str
    device: str
    batch: int
    ours_examples_per_s: float
    peer_examples_per_s: float
    speedup: float
    fewest: float
    most: float
    layers_speedup: float
    max_gradient_difference: float


def bench_training(hidden: int, layers: int, batch: int, seed: int, *, repeats: int = 7) -> TrainingRow:
    """One sequence is 20 items, the last 10 of them targets. hidden: a multiple of 32."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, CODES, size=(2_000, LEVELS)).astype(np.int16)
    ours = LoraBackbone(_backbone(hidden, layers, seed), rank=RANK, alpha=ALPHA, dropout=0.0, seed=seed)
    peer, of_peer = _with_peft(_backbone(hidden, layers, seed))
    _same_values(ours, of_peer, seed)
    sequences = [TrainingSequence(random.integers(0, len(codes), ITEMS), ITEMS - TARGETS) for _ in range(batch)]
    difference = _gradient_difference(ours, peer, of_peer, sequences, codes)
    apart = [
        TrainingSequence(sequence.rows[: place + 1], place)
        for sequence in sequences
        for place in range(sequence.first_target, ITEMS)
    ]
    parts = [apart[first : first + PEER_BATCH] for first in range(0, len(apart), PEER_BATCH)]
    mine, theirs = list(ours.parameters.values()), list(of_peer.values())
    ways = [
        _way(ours.backbone, mine, [lambda: sequence_loss(ours.backbone, sequences, codes)[0]]),
        _way(peer, theirs, [partial(_common_loss, peer, part, codes) for part in parts]),
        _way(peer, theirs, [lambda: sequence_loss(peer, sequences, codes)[0]]),
    ]
    times = in_turns(ways, repeats)
    ratios = [slow / fast for fast, slow in zip(times[0], times[1], strict=True)]
    return TrainingRow(
        f"llama {hidden} x {layers}",
        ours.backbone.device.type,
        batch,
        len(apart) / statistics.median(times[0]),
        len(apart) / statistics.median(times[1]),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        statistics.median(slow / fast for fast, slow in zip(times[0], times[2], strict=True)),
        difference,
    )


def _backbone(hidden: int, layers: int, seed: int) -> Backbone:
    backbone = new_tiny(TinyConfig(hidden, layers, hidden // 32), seed)
    backbone.model.requires_grad_(False)
    return backbone


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
) -> float:
    found: list[dict[str, Tensor]] = []
    for backbone, parameters in ((ours.backbone, ours.parameters), (peer, of_peer)):
        loss, _ = sequence_loss(backbone, sequences, codes)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        found.append(dict(zip(parameters, gradients, strict=True)))
    largest = max(float(gradient.abs().max()) for gradient in found[1].values())
    return max(float((found[0][name] - found[1][name]).abs().max()) for name in found[1]) / largest


def _common_loss(peer: Backbone, examples: Sequence[TrainingSequence], codes: NDArray[np.int16]) -> Tensor:
    """The loss that transformers computes from labels, of prompts padded to one length."""
    whole = [peer.prompt.encode(codes[example.rows]) for example in examples]
    tokens, lengths = pad_prompts(whole)
    place = torch.arange(tokens.shape[1])
    real = place < lengths[:, None]
    labels = tokens.masked_fill(~real | (place < lengths[:, None] - LEVELS), -100)
    loss: Tensor = peer.model(input_ids=tokens, attention_mask=real.long(), labels=labels, use_cache=False).loss
    return loss


def _way(
    backbone: Backbone, parameters: list[nn.Parameter], losses: Sequence[Callable[[], Tensor]]
) -> Callable[[], None]:
    """Over all examples once, an optimiser step a loss."""
    optimiser = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    device = backbone.device

    def step() -> None:
        backbone.model.train()
        for compute in losses:
            with torch.autocast(device.type, torch.bfloat16, enabled=low_precision_pays(device)):
                loss = compute()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch
            optimiser.step()

    return step
