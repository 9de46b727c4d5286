"""From embedded tokens to last hidden states while training, and for losses: which forward pass runs."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaModel

from service.generation.backbone import Backbone
from trainer.dropout import dropout
from trainer.llama_decoder import decode_llama, decodes


def decode(backbone: Backbone, inputs: Tensor, residual_dropout: float = 0.0) -> Tensor:
    """Last hidden states [batch, positions, hidden] of inputs [batch, positions, hidden], causal.

    residual_dropout: on what attention and MLP add to the residual stream, in training mode only.
    """
    rate = residual_dropout if backbone.model.training else 0.0
    decoder = backbone.decoder
    if backbone.device.type == "cpu" and isinstance(decoder, LlamaModel) and decodes(backbone.model):
        return decode_llama(decoder, inputs, rate)
    with _matrix_attention(backbone), _dropping(backbone, rate):
        hidden: Tensor = decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state
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
def _dropping(backbone: Backbone, rate: float) -> Iterator[None]:
    def hook(module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return dropout(output, rate, training=True)

    names = ("o_proj", "down_proj")
    found = [m for n, m in backbone.model.named_modules() if n.endswith(names)] if rate else []
    handles = [module.register_forward_hook(hook) for module in found]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
