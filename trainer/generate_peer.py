"""The peer of the search benchmarks: transformers' own beam search, held to the trie as the paper's code holds it."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PrefixConstrainedLogitsProcessor

from service.catalog.trie import CODES, LEVELS, Trie
from service.generation.backbone import Backbone
from service.generation.engine import GenerationRequest
from service.generation.prompt import EOS, PAD

Allowed = Callable[[int, Tensor], list[int]]


class GeneratePeer:
    """Beam search of transformers, the trie behind prefix_allowed_tokens_fn, as LC-Rec and the paper's authors run it.

    beams: the width, and how many items come back.
    """

    def __init__(self, backbone: Backbone, trie: Trie, beams: int) -> None:
        self._backbone, self._trie, self._beams = backbone, trie, beams
        self._children: dict[tuple[int, ...], list[int]] = {}
        self._leaf: dict[tuple[int, ...], int] = {}
        self._tokens = trie.leaf_codes + backbone.prompt.offsets
        for leaf, whole in enumerate(self._tokens.tolist()):
            self._leaf[tuple(whole)] = leaf
            for depth, token in enumerate(whole):
                known = self._children.setdefault(tuple(whole[:depth]), [])
                if not known or known[-1] != token:  # leaves are in lexicographic order
                    known.append(token)

    def leaves(self, requests: Sequence[GenerationRequest], *, one_score: bool = False) -> list[list[int]]:
        """The lists for requests whose histories have one length, generated together.

        one_score: score by the softmax over the level's codes, as the engine does, and not over the whole vocabulary,
        as generate() does by itself; so that the lists can be compared.
        """
        prompts = [self._backbone.prompt.encode(request.history) for request in requests]
        prompt = torch.from_numpy(np.stack(prompts)).to(self._backbone.device)
        start = prompt.shape[1]
        each = [self._allowed(start, request.excluded) for request in requests]
        allowed: Allowed = lambda batch, sentence: each[batch](batch, sentence)  # noqa: E731
        level = LevelScores(self._backbone.first_code_token, start, allowed, self._beams)
        found = self._backbone.model.generate(  # type: ignore[operator]  # transformers
            prompt,
            attention_mask=torch.ones_like(prompt),
            num_beams=self._beams,
            num_return_sequences=self._beams,
            max_new_tokens=LEVELS,
            do_sample=False,
            length_penalty=0.0,
            pad_token_id=PAD,
            eos_token_id=EOS,
            **(
                {"logits_processor": LogitsProcessorList([level])}
                if one_score
                else {"prefix_allowed_tokens_fn": allowed}
            ),
        )
        leaves = [self._leaf[tuple(own)] for own in found[:, start:].tolist()]
        return [leaves[first : first + self._beams] for first in range(0, len(leaves), self._beams)]

    def _allowed(self, start: int, excluded: NDArray[np.int64]) -> Allowed:
        dead: dict[tuple[int, ...], set[int]] = {}
        for depth, gone in enumerate(self._trie.dead_nodes(excluded)):
            first_leaf = np.searchsorted(self._trie.node_of_leaf[depth], gone.node)
            for *prefix, token in self._tokens[first_leaf, : depth + 1].tolist():
                dead.setdefault(tuple(prefix), set()).add(token)

        def allowed(_: int, sentence: Tensor) -> list[int]:
            prefix = tuple(sentence[start:].tolist())
            children = self._children.get(prefix, [EOS])
            gone = dead.get(prefix)
            return [token for token in children if token not in gone] or [EOS] if gone else children

        return allowed


class LevelScores(LogitsProcessor):
    """Log-softmax over the level's 256 codes, then the trie's mask."""

    def __init__(self, first_code_token: int, start: int, allowed: Allowed, beams: int) -> None:
        self._first, self._start = first_code_token, start
        self._mask = PrefixConstrainedLogitsProcessor(allowed, beams)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        first = self._first + CODES * (input_ids.shape[1] - self._start)
        level = torch.full_like(scores, -torch.inf)
        level[:, first : first + CODES] = torch.log_softmax(scores[:, first : first + CODES], dim=-1)
        masked: Tensor = self._mask(input_ids, level)
        return masked
