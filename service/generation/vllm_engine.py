"""The vLLM engine: its forward passes, our constrained beam search over one-token requests.

vLLM's own beam search cannot be held to the trie (docs/decisions/0017). Each level, all beams of all requests of a
batch are one submission: what a beam shares with others is read from the prefix cache, and masks are applied here.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.catalog.trie import CODES, LEVELS, Trie
from service.generation.backbone import pick_device, pick_dtype
from service.generation.engine import Generated, GenerationRequest
from service.generation.trie_beam import TrieBeam, dead_children, root
from service.generation.vllm_base import INSIDE, LoadedAdapter, VllmBase, VllmOptions

if TYPE_CHECKING:
    from service.adapters.artifacts import VerifiedAdapter, VerifiedBase

NOTHING = np.empty(0, dtype=np.int64)


class VllmModel:
    """A ServedModel: a base in vLLM and one of the adapters loaded beside it, or none."""

    def __init__(
        self, engine: "VllmEngine", base: VllmBase, loaded: LoadedAdapter | None, version: str | None, least_beams: int
    ) -> None:
        self.base_id, self.adapter_version = base.base_id, version
        self._engine, self._base, self._loaded = engine, base, loaded
        self._least_beams = least_beams

    def generate(self, requests: Sequence[GenerationRequest], trie: Trie) -> list[Generated]:
        """See ServedModel. Each request has a beam width of its own; they only share vLLM's batches."""
        prompts = [self._base.prompt.encode(request.history).tolist() for request in requests]
        dead = [dead_children(trie, request.excluded if request.within is None else NOTHING) for request in requests]
        lefts = [request.left for request in requests]
        live = [None if left is None else trie.live_nodes(left) for left in lefts]
        beams = [root(trie)] * len(requests)
        for level in range(LEVELS):
            logp = self._next_codes(prompts, beams, level)
            first = 0
            for i, (request, beam) in enumerate(zip(requests, beams, strict=True)):
                own = logp[first : first + len(beam)]
                first += len(beam)
                width, only = max(self._least_beams, request.limit), live[i]
                beams[i] = beam.grow(
                    trie, own, dead[i][level], width, None if only is None else only[level], request.penalty
                )
        return [
            Generated(beam.nodes[: request.limit], beam.scores[: request.limit])
            for request, beam in zip(requests, beams, strict=True)
        ]

    def _next_codes(self, prompts: Sequence[list[int]], beams: Sequence[TrieBeam], level: int) -> NDArray[np.float32]:
        """float32 [beams of all requests, 256]."""
        offsets = self._base.prompt.offsets[:level]
        asked = [
            prompt + tokens
            for prompt, beam in zip(prompts, beams, strict=True)
            for tokens in (beam.codes + offsets).tolist()
        ]
        if not asked:
            return np.empty((0, CODES), dtype=np.float32)
        with INSIDE:  # a level at a time, so that an adapter that is coming need not wait for a whole batch
            return self._base.level_scores(asked, level, self._loaded)

    def close(self) -> None:
        self._engine.leave(self._base, self._loaded)


class VllmEngine:
    """One vLLM engine for each base in use; every adapter is loaded beside its base.

    vLLM keeps state that all its engines in a process share, so one thread at a time is inside it: an adapter is loaded
    between two levels of a search, while searches wait for a base that is being loaded (they fall back meanwhile).
    """

    def __init__(self, options: VllmOptions, *, beams: int) -> None:
        """options.device and options.dtype may be `auto`."""
        device = pick_device(options.device)
        dtype = str(pick_dtype(options.dtype, device)).removeprefix("torch.")
        self._options = replace(options, device=device.type, dtype=dtype)
        self._beams = beams
        self._bases: dict[str, VllmBase] = {}
        self._latest: str | None = None

    def load(self, base: "VerifiedBase", adapter: "VerifiedAdapter | None") -> VllmModel:
        """See Engine. A new base is a new vLLM engine; the old one is freed when its last model is closed."""
        with INSIDE:
            held = self._bases.get(base.base_id)
            if held is None:
                held = self._bases[base.base_id] = VllmBase(base, self._options)
            loaded = held.add(adapter) if adapter is not None else None
            held.models += 1
            self._latest = base.base_id
            self._free_unused()
        return VllmModel(self, held, loaded, adapter.version if adapter else None, self._beams)

    def leave(self, base: VllmBase, loaded: LoadedAdapter | None) -> None:
        """A model is closed: its adapter goes, and its base unless it is the one in use."""
        with INSIDE:
            base.models -= 1
            if loaded is not None:
                base.remove(loaded)
            self._free_unused()

    def _free_unused(self) -> None:
        for base_id, base in list(self._bases.items()):
            if base_id != self._latest and not base.models:
                del self._bases[base_id]
                base.shut()
