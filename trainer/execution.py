"""How training runs on its device: in few shapes, in parts that fit the memory, compiled or captured where that pays.

On a CPU a batch is one pass, as it comes. On a GPU rows are padded to a few lengths, and batches to one number of rows
where blocks are compiled or passes captured, so that those, kernels and memory are used again; a batch too large for
the memory is taken in parts whose gradients add up, and a model too large even for that recomputes its blocks in the
backward pass.
docs/decisions/0015 has the reasons.
"""

import math
import os
import shutil
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._triton import has_triton
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaModel

from service.generation.backbone import Backbone
from trainer.decoder import dropping
from trainer.examples import TrainingSequence
from trainer.group import Group
from trainer.layout import Size, sequence_length, targets_of
from trainer.lora import ADDING, AdaptedLinear, blocks

FEW_LENGTHS, ALIGNED = 4, 16
FEWEST_TOKENS, MOST_TOKENS = 4_096, 16_384
"""Of one forward pass: fewer leave a GPU's matrix units idle, more gain nothing."""
MEMORY_SHARE = 0.6
"""Of the memory that is left, for activations: weights, gradients and what an optimiser keeps come out of the rest."""
COMPILING_PAYS = 6e12
"""Floating-point operations of a whole training for each channel of a model that is not captured: a narrow one does
fewer a second. An H100 did 338 T of a billion parameters compiled; compiling takes 20 s to a minute."""
LAUNCHES_BIND = 1e13
"""Floating-point operations of one forward and backward pass up to which it is captured (trainer.captured), since a GPU
waits for its host. Passes of some 2e12 gained by it on an H200; the bound itself is a guess."""
CAPTURING_PAYS = 50
"""Steps of a training from which capturing its few shapes should pay; a guess."""


@dataclass(frozen=True, slots=True)
class Execution:
    """How batches become forward passes; the empty one takes each as it comes.

    rows: sequences in a full batch. lengths: what rows are padded to, ascending. tokens: most in one forward pass.
    targets: most of one sequence of each length, where passes are captured; else empty.
    """

    rows: int = 0
    lengths: tuple[int, ...] = ()
    tokens: int = MOST_TOKENS
    checkpoint: bool = False
    compiled: bool = False
    targets: tuple[int, ...] = ()

    @property
    def captured(self) -> bool:
        """Whether steps are captured (trainer.captured)."""
        return bool(self.targets)

    def parts(
        self, backbone: Backbone, batch: Sequence[TrainingSequence]
    ) -> Iterator[tuple[list[TrainingSequence], Size]]:
        """The batch cut into parts, each with the size it is padded to: without targets if it was not planned for."""
        if not self.lengths:
            yield list(batch), Size()
            return
        longest = max(sequence_length(backbone.prompt, sequence) for sequence in batch)
        place = bisect_left(self.lengths, longest)
        length = self.lengths[place] if place < len(self.lengths) else -(-longest // ALIGNED) * ALIGNED
        count = math.ceil(self.rows / max(1, self.tokens // length))
        rows = math.ceil(self.rows / count)
        targets = rows * self.targets[place] if place < len(self.targets) else 0
        for first in range(0, len(batch), rows):
            part = list(batch[first : first + rows])
            full = rows if self.compiled or self.captured else len(part)
            yield part, Size(full, length, targets if targets >= sum(map(targets_of, part)) else 0)


AS_IT_COMES = Execution()
"""A CPU's: nothing is padded or cut."""


def plan(
    backbone: Backbone,
    sequences: Sequence[TrainingSequence],
    batch_size: int,
    epochs: int,
    *,
    residual_dropout: float = 0.0,
    compiled: bool | None = None,
    captured: bool | None = None,
) -> Execution:
    """For training `epochs` times over `sequences`. compiled, captured: None where it pays, False never."""
    if backbone.device.type != "cuda" or not sequences:
        return AS_IT_COMES
    lengths = np.array([sequence_length(backbone.prompt, sequence) for sequence in sequences])
    lengths = -(-lengths // ALIGNED) * ALIGNED
    few = np.unique(np.quantile(lengths, np.arange(1, FEW_LENGTHS + 1) / FEW_LENGTHS, method="higher"))
    operations = 4 * _block_parameters(backbone)  # a token
    if captured is None:
        usual = operations * batch_size * float(lengths.mean())
        captured = usual <= LAUNCHES_BIND and epochs * len(sequences) >= CAPTURING_PAYS * batch_size
    free = MEMORY_SHARE * memory_left(backbone.device)
    tokens, recompute = fitting(backbone, free / 2, compiled=False)  # what graphs use is theirs alone
    if captured and not recompute and can_capture(backbone):
        counts = np.array([targets_of(sequence) for sequence in sequences])
        targets = tuple(int(counts[lengths <= length].max()) for length in few)
        return Execution(batch_size, tuple(few.tolist()), tokens, targets=targets)
    if compiled is None:
        work = operations * float(lengths.sum()) * epochs
        compiled = work >= COMPILING_PAYS * backbone.model.config.hidden_size
    compiled = compiled and can_compile(backbone, residual_dropout)
    tokens, recompute = fitting(backbone, free, compiled)
    return Execution(batch_size, tuple(few.tolist()), tokens, recompute, compiled)


def memory_left(device: torch.device) -> float:
    """Bytes that this process may still take of a GPU: what is free there, within its share of the whole."""
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    share = torch.cuda.get_per_process_memory_fraction(device)
    return within_share(free, total, share, allocated, torch.cuda.memory_reserved(device))


def within_share(free: int, total: int, share: float, allocated: int, reserved: int) -> float:
    """See memory_left. allocated: in use by this process; reserved: what it has taken, for that and for later."""
    return max(0.0, min(free + reserved - allocated, share * total - allocated))


def agreed(execution: Execution, group: Group) -> Execution:
    """What fits the rank with the least memory free, so that all cut a batch alike. Collective."""
    if group.size == 1:
        return execution
    tokens, plain = group.least(execution.tokens), group.least(not execution.checkpoint)
    return replace(execution, tokens=int(tokens), checkpoint=not plain)


def fitting(backbone: Backbone, free: float, compiled: bool) -> tuple[int, bool]:
    """Tokens of one forward pass whose activations fit `free` bytes, and whether only with blocks recomputed."""
    config = backbone.model.config
    hidden, layers = config.hidden_size, config.num_hidden_layers
    mlp = getattr(config, "intermediate_size", None) or 4 * hidden
    width = next(iter(backbone.decoder.parameters())).element_size()
    block = width * (16 * hidden + 8 * mlp)  # 38 GiB for 11,800 tokens of a Llama of 1B parameters, as measured
    tokens = int(free / (layers * block * (0.5 if compiled else 1.0)))
    if tokens >= FEWEST_TOKENS:
        return min(tokens, MOST_TOKENS), False
    tokens = int(free / (layers * width * hidden + block))
    return min(max(tokens, 1), MOST_TOKENS), True


def can_compile(backbone: Backbone, residual_dropout: float = 0.0) -> bool:
    """Whether compiled blocks compute what these do: nobody watches, and dropout on outputs is the layers' own."""
    compiler = os.environ.get("CC") or "cc"
    if not (has_triton() and (shutil.which(compiler) or shutil.which("gcc"))) or not _blocks(backbone):
        return False
    if _watched(backbone):
        return False
    linears = backbone.decoder.named_modules()
    return not residual_dropout or all(isinstance(own, AdaptedLinear) for name, own in linears if name.endswith(ADDING))


def can_capture(backbone: Backbone) -> bool:
    """Whether passes can be captured: those of a Llama that nobody watches. Other models were not tried."""
    return isinstance(backbone.decoder, LlamaModel) and not _watched(backbone)


@contextmanager
def executing(backbone: Backbone, execution: Execution, residual_dropout: float = 0.0) -> Iterator[float]:
    """Run the blocks so while training; passes without gradients stay as they were.

    Yields the residual dropout that is left for the forward pass to apply: 0 where compiled layers do it, or where it
    must last until the backward pass has repeated its blocks.
    """
    own_blocks = _blocks(backbone) if execution.compiled or execution.checkpoint else []
    compiled_in: list[AdaptedLinear] = []
    if execution.compiled and residual_dropout:
        named = backbone.decoder.named_modules()
        compiled_in = [own for name, own in named if name.endswith(ADDING) and isinstance(own, AdaptedLinear)]
    repeated = execution.checkpoint and not execution.compiled
    for own in compiled_in:
        own.output_dropout = residual_dropout
    if own_blocks:
        plain = type(own_blocks[0]).forward
        inner = torch.compile(plain, dynamic=False) if execution.compiled else plain
        for block in own_blocks:  # a block's own forward hides its class's until the training is over
            block.forward = _training_forward(block, plain, inner, execution.checkpoint)
    config = backbone.model.config
    attention = config._attn_implementation
    if own_blocks and backbone.device.type == "cpu":  # as in the forward pass, also where the backward one repeats it
        config._attn_implementation = "eager"
    try:
        recompiling = torch._dynamo.config.patch(recompile_limit=64) if execution.compiled else nullcontext()
        with recompiling, dropping(backbone, residual_dropout if repeated else 0.0):
            yield 0.0 if compiled_in or repeated else residual_dropout
    finally:
        config._attn_implementation = attention
        for block in own_blocks:
            del block.forward
        for own in compiled_in:
            own.output_dropout = 0.0


def _training_forward(
    block: nn.Module, plain: Callable[..., Tensor], inner: Callable[..., Tensor], recompute: bool
) -> Callable[..., Tensor]:
    def forward(*inputs: Tensor, **named: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return plain(block, *inputs, **named)
        if recompute:
            recomputed: Tensor = checkpoint(inner, block, *inputs, use_reentrant=False, **named)
            return recomputed
        return inner(block, *inputs, **named)

    return forward


def _watched(backbone: Backbone) -> bool:
    """Whether an observer wants the inputs of an adapted layer, in every pass."""
    return any(isinstance(own, AdaptedLinear) and own.observer is not None for own in backbone.decoder.modules())


def _blocks(backbone: Backbone) -> list[nn.Module]:
    """The decoder's blocks; none where they are not all of one class."""
    found = [block for _, block in blocks(backbone.model)]
    return found if len({type(block) for block in found}) == 1 else []


def _block_parameters(backbone: Backbone) -> int:
    return sum(p.numel() for block in _blocks(backbone) for p in block.parameters())
