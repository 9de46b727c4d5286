"""The forward passes of one search: a prefill of the prompts, then a few tokens for each of their beams at a time."""

from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from service.generation.backbone import Backbone
from service.generation.llama import Llama, LlamaPasses, Prefix


class Passes(Protocol):
    """One batch of prompts and the cache of everything passed so far. Used once.

    shared: tokens that every prompt begins with and that are in the cache already; prompts are what follows them.
    """

    shared: int

    def prefill(self, prompts: Tensor, lengths: Tensor) -> Tensor:
        """The last position's hidden state of each prompt, [batch, hidden].

        prompts: int64 [batch, longest], padded on the right; lengths: int64 [batch], at least 1.
        """
        ...

    def step(self, tokens: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Hidden states of more tokens, [batch, tokens, hidden].

        tokens, positions: int64 [batch, tokens]. visible: bool [batch, tokens, keys], what each sees of all that was
        passed, these tokens included; each sees itself.
        """
        ...


class GeneralPasses:
    """Passes through any decoder of transformers."""

    shared = 0

    def __init__(self, decoder: nn.Module) -> None:
        self._decoder, self._dtype = decoder, next(decoder.parameters()).dtype
        self._cache = DynamicCache()  # without a config: every layer keeps everything, also one with a window

    def prefill(self, prompts: Tensor, lengths: Tensor) -> Tensor:
        # Padded on the right, so plain causal attention already hides the padding from every real position.
        hidden: Tensor = self._decoder(input_ids=prompts, past_key_values=self._cache, use_cache=True).last_hidden_state
        return hidden[torch.arange(len(prompts), device=prompts.device), lengths - 1]

    def step(self, tokens: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        hidden: Tensor = self._decoder(
            input_ids=tokens,
            attention_mask=added_mask(visible, self._dtype),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return hidden


def added_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores, 0 or -inf, [batch, 1, queries, keys], of bool [batch, queries, keys].

    Every kind of attention takes a mask so; as truth values eager attention would add them as they are.
    """
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, -torch.inf)[:, None]


def open_passes(
    backbone: Backbone, llama: Llama | None, batch: int, capacity: int, prefix: Prefix | None = None
) -> Passes:
    """llama: the backbone's weights packed, where they can be. capacity: most positions of a prompt and its beams.

    prefix: of `llama`; prompts and capacity are what follows it.
    """
    if llama is None:
        return GeneralPasses(backbone.decoder)
    return LlamaPasses(llama, batch, capacity, prefix)
