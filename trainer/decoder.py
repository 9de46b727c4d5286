"""From laid out tokens to last hidden states and losses, while training or judging: which forward pass runs."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaModel

from service.generation.backbone import Backbone
from service.generation.passes import added_mask
from trainer.dropout import dropout
from trainer.layout import NO_LABEL, Layout, visible
from trainer.llama_decoder import decode_llama, decodes
from trainer.lora import ADDING


@dataclass(frozen=True, eq=False)
class Placed:
    """A Layout's arrays on the device, with the same names and shapes."""

    tokens: Tensor
    predicts: Tensor
    labels: Tensor
    branches: tuple[Tensor, Tensor, Tensor] | None

    def copy_(self, other: "Placed") -> None:
        """Take over the values of another one of the same shapes."""
        for own, new in zip(self._tensors(), other._tensors(), strict=True):
            own.copy_(new, non_blocking=True)

    def _tensors(self) -> tuple[Tensor, ...]:
        return (self.tokens, self.predicts, self.labels, *(self.branches or ()))


def place(layout: Layout, device: torch.device) -> Placed:
    """The layout on a device; to a GPU without waiting for it."""
    tokens, predicts, labels = (to_device(part, device) for part in (layout.tokens, layout.predicts, layout.labels))
    branches = None
    if layout.branches is not None:
        positions, owner, reach = (to_device(part, device) for part in layout.branches)
        branches = positions, owner, reach
    return Placed(tokens, predicts, labels, branches)


def summed_loss(
    backbone: Backbone, placed: Placed, embedding_dropout: float = 0.0, residual_dropout: float = 0.0
) -> Tensor:
    """Sum over targets and their 4 levels of the cross-entropy over that level's 256 codes; padding adds nothing."""
    hidden = decode_tokens(backbone, placed, embedding_dropout, residual_dropout)
    hidden = hidden.flatten(0, 1)[placed.predicts]  # [targets, 4, hidden]
    logits = backbone.target_logits(hidden)
    return nn.functional.cross_entropy(
        logits.flatten(0, 1), placed.labels.flatten(), reduction="sum", ignore_index=NO_LABEL
    )


def decode_tokens(
    backbone: Backbone, placed: Placed, embedding_dropout: float = 0.0, residual_dropout: float = 0.0
) -> Tensor:
    """Last hidden states [batch, length, hidden] of a batch of laid out sequences.

    The dropouts act in training mode: on embedded tokens, and on what attention and MLP add to the residual stream.
    """
    inputs = backbone.model.get_input_embeddings()(placed.tokens)
    inputs = dropout(inputs, embedding_dropout, backbone.model.training)
    if placed.branches is None:
        return decode(backbone, inputs, residual_dropout)
    positions, owner, reach = placed.branches
    return decode(backbone, inputs, residual_dropout, positions=positions, visible=visible(owner, reach))


def to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """A copy to a GPU does not wait for what is running there."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def decode(
    backbone: Backbone,
    inputs: Tensor,
    residual_dropout: float = 0.0,
    *,
    positions: Tensor | None = None,
    visible: Tensor | None = None,
) -> Tensor:
    """Last hidden states [batch, length, hidden] of inputs [batch, length, hidden].

    positions: int64 [batch, length] and visible: bool [batch, length, length], what each token sees, itself included;
    without them, one causal sequence a row. residual_dropout: on what attention and MLP add to the residual stream, in
    training mode only.
    """
    rate = residual_dropout if backbone.model.training else 0.0
    decoder = backbone.decoder
    if (
        backbone.device.type == "cpu"
        and visible is None
        and isinstance(decoder, LlamaModel)
        and decodes(backbone.model)
    ):
        return decode_llama(decoder, inputs, rate)
    mask = None
    width = next(decoder.parameters()).dtype
    halved = width.itemsize < 4 and inputs.is_cuda
    if halved:  # then the residual stream is in the weights' type too, as it is served, and nothing is cast on the way
        inputs = inputs.to(width)
    if visible is not None:
        mask = added_mask(visible, inputs.dtype)
    products = torch.autocast("cuda", enabled=False) if halved else nullcontext()
    with _matrix_attention(backbone), dropping(backbone, rate), products:
        hidden: Tensor = decoder(
            inputs_embeds=inputs, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
    return hidden


@contextmanager
def _matrix_attention(backbone: Backbone) -> Iterator[None]:
    """Attention as plain matrix products on a CPU.

    The backward pass of torch's fused attention takes half of a whole training step there (docs/decisions/0007).
    """
    config = backbone.model.config
    chosen = config._attn_implementation
    if backbone.device.type == "cpu":
        config._attn_implementation = "eager"  # what set_attn_implementation sets, without its checks at every step
    try:
        yield
    finally:
        config._attn_implementation = chosen


@contextmanager
def dropping(backbone: Backbone, rate: float) -> Iterator[None]:
    """Dropout on what attention and MLP add to the residual stream, while a layer is in training mode."""

    def hook(module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return dropout(output, rate, training=module.training)

    found = [m for n, m in backbone.decoder.named_modules() if n.endswith(ADDING)] if rate else []
    handles = [module.register_forward_hook(hook) for module in found]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
