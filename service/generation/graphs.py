"""Searches captured as CUDA graphs; over 300 lines, since slots, programs and what they share are one state.

There is one for each bucket of batch, prompt length and beam width, in each of two slots.

A slot is a set of packed weights at addresses that never change, with the graphs that read them. A model in service
owns one slot; the next one is merged into the other while the first still answers, so a swap captures nothing and an
answer is of one version by construction (docs/decisions/0014). On a CPU the same programs run uncaptured.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.catalog.trie import LEVELS, Trie
from service.generation.backbone import Backbone
from service.generation.blocks import Blocks
from service.generation.llama import Llama, owned, pack, pack_into, read_prefix
from service.generation.program import (
    EXCLUSIONS,
    NODES,
    Bucket,
    Inputs,
    StaticTrie,
    Weights,
    dead_lists,
    room_for,
    run,
)
from service.generation.prompt import PAD

WARM_RUNS = 2  # before a capture: the first compiles and tunes, the second finds everything as the capture will

Progress = Callable[[int, int, int, int, int, float], None]
"""Told after each capture: how many are done, of how many; batch, prompt tokens, beams; seconds."""


def silent(done: int, of: int, batch: int, tokens: int, beams: int, seconds: float) -> None:
    """A Progress that tells nobody."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is captured at start: every batch with every prompt length (in items of history) and beam width."""

    batches: tuple[int, ...]
    histories: tuple[int, ...]
    widths: tuple[int, ...]


def sizes_for(requests: int, history_items: int, beams: int) -> Sizes:
    """Batches of 1, 2, 4 .. up to `requests`, the longest prompt and one of half the history, one beam width."""
    batches = [1 << i for i in range(requests.bit_length()) if 1 << i < requests]
    return Sizes((*batches, requests), tuple(sorted({(history_items + 1) // 2, history_items})), (beams,))


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """Requests as a program takes them: what follows the prefix, and what each must not return."""

    tokens: Sequence[NDArray[np.int64]]
    excluded: Sequence[NDArray[np.int64]]


class Slot:
    """Weights that stay where they are, and the programs that read them."""

    def __init__(self, backbone: Backbone, llama: Llama, prefix: NDArray[np.int64], positions: int) -> None:
        self._tokens = torch.from_numpy(prefix).to(backbone.device)
        self.prefix = read_prefix(llama, self._tokens) if len(prefix) else None
        self.weights = Weights.of(backbone, llama, self.prefix, positions)
        self.programs: dict[Bucket, Program] = {}

    @property
    def llama(self) -> Llama:
        return self.weights.llama

    def load(self, backbone: Backbone) -> None:
        """Take over the weights of `backbone`. No search may run in this slot meanwhile."""
        pack_into(self.llama, backbone.model)
        if self.prefix is not None:
            read = read_prefix(self.llama, self._tokens)
            self.prefix.keys.copy_(read.keys)
            self.prefix.values.copy_(read.values)


@dataclass(slots=True, eq=False)
class Program:
    """One bucket's search over one slot. host: pinned, one block that holds all inputs; device: its copy."""

    bucket: Bucket
    host: Tensor
    device: Tensor
    found: Tensor
    back: Tensor
    search: Callable[[], None]
    graph: "torch.cuda.CUDAGraph | None" = field(default=None)

    def __call__(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Leaves [batch, width] and scores of what `host` holds."""
        self.device.copy_(self.host, non_blocking=True)
        if self.graph is None:
            self.search()
        else:
            self.graph.replay()
        self.back.copy_(self.found, non_blocking=True)
        if self.device.is_cuda:
            torch.cuda.current_stream().synchronize()
        leaves, scores = self.back.numpy()
        return leaves.astype(np.int64), scores.view(np.float32).copy()


class Graphs:
    """The programs of one base and what they share: compiled pieces, a cache, the trie, a pool of memory.

    One search at a time, from any thread.
    """

    def __init__(
        self,
        backbone: Backbone,
        sizes: Sizes,
        blocks: Blocks,
        *,
        share_prefix: bool = True,
        on_capture: Progress = silent,
    ) -> None:
        """blocks: compiled or not. share_prefix: read what all prompts begin with once a model."""
        prompt = backbone.prompt
        self._backbone, self._blocks, self._on_capture = backbone, blocks, on_capture
        self._prefix = prompt.shared if share_prefix else prompt.shared[:0]
        lengths = sorted({prompt.length(items) - len(self._prefix) for items in sizes.histories})
        self.buckets = [Bucket(b, t, w) for w in sizes.widths for t in lengths for b in sizes.batches]
        self._positions = max(bucket.positions(len(self._prefix)) for bucket in self.buckets)
        self._lock = threading.RLock()
        self._free: list[Slot] = []
        self._slots: list[Slot] = []
        self._trie = StaticTrie(backbone.device, NODES)
        self._cache: tuple[Tensor, Tensor] | None = None
        self._cuda = backbone.device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if self._cuda else None
        self._stream, self._loading = (stream_on(backbone.device) for _ in range(2))

    @property
    def largest_batch(self) -> int:
        return max(bucket.batch for bucket in self.buckets)

    @property
    def shared_tokens(self) -> int:
        """Tokens of the prefix, which prompts come without."""
        return len(self._prefix)

    def fits(self, tokens: int, excluded: int, width: int) -> bool:
        """Whether a request of so many prompt tokens behind the prefix and excluded leaves has a bucket."""
        return excluded <= EXCLUSIONS and any(b.tokens >= tokens and b.width == width for b in self.buckets)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Work on the device beside the searches, done when the block ends."""
        if self._loading is None:
            yield
            return
        self._loading.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._loading):
            yield
        self._loading.synchronize()

    def take(self, backbone: Backbone) -> Slot | None:
        """A slot with the weights of `backbone`, the base with or without an adapter; None for what has no packed form.

        The first call makes and captures the two slots that a swap needs.
        """
        if token_rows(backbone) != token_rows(self._backbone):
            return None  # an adapter of the embedding or the head, which the slots share
        with self._lock:
            slot = self._free.pop() if self._free else None
        if slot is not None:
            try:
                with self.loading():
                    slot.load(backbone)
            except BaseException:
                self.give_back(slot)
                raise
            return slot
        with self.loading():
            packed = pack(backbone.model)
            if packed is None:
                return None
            llamas = [owned(packed, self._backbone.model) for _ in range(1 if self._slots else 2)]
            made = [Slot(self._backbone, llama, self._prefix, self._positions) for llama in llamas]
        self._capture_all(made)
        with self._lock:
            self._slots += made
            self._free += made[1:]
        return made[0]

    def give_back(self, slot: Slot) -> None:
        """The slot is free for the next model. No search may use it any more."""
        with self._lock:
            self._free.append(slot)

    def search(
        self, slot: Slot, prompts: Prompts, trie: Trie, width: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Leaves int64 [requests, width] and scores, -inf where there is nothing.

        Each request `fits`, and there are at most `largest_batch`. When the trie has outgrown its room each program is
        captured anew at its next use, which takes a while.
        """
        count, longest = len(prompts.tokens), max(map(len, prompts.tokens))
        bucket = min(b for b in self.buckets if b.width == width and b.batch >= count and b.tokens >= longest)
        with self._lock:
            if not self._trie.fits(trie):
                self._trie = StaticTrie(self._backbone.device, room_for(trie, self._trie.nodes))
                for other in self._slots:
                    other.programs.clear()
            if bucket not in slot.programs:
                self._capture(slot, bucket)
            self._trie.hold(trie)
            program = slot.programs[bucket]
            fill(program.host.numpy(), bucket, prompts, trie)
            leaves, scores = program()
        return leaves[:count], scores[:count]

    def _capture_all(self, slots: Sequence[Slot]) -> None:
        # The largest first: the smaller ones then fit into the memory that it has left in the pool.
        jobs = [(slot, bucket) for bucket in sorted(self.buckets, reverse=True) for slot in slots]
        for done, (slot, bucket) in enumerate(jobs, 1):
            began = time.monotonic()
            self._capture(slot, bucket)
            seconds = time.monotonic() - began
            self._on_capture(done, len(jobs), bucket.batch, bucket.tokens, bucket.width, seconds)

    def _capture(self, slot: Slot, bucket: Bucket) -> None:
        with self._lock, torch.no_grad():
            slot.programs[bucket] = self._program(slot, bucket)

    def _program(self, slot: Slot, bucket: Bucket) -> Program:
        host = torch.empty(input_size(bucket), dtype=torch.int32, pin_memory=self._cuda)
        fill(host.numpy(), bucket, Prompts([], []), None)
        device = host.to(self._backbone.device)
        found = torch.zeros(2, bucket.batch, bucket.counts[-1], dtype=torch.int32, device=device.device)
        back = torch.zeros(found.shape, dtype=torch.int32, pin_memory=self._cuda)
        inputs = Inputs(*views(device, bucket))
        keys, values = self._cache_of(slot, bucket)
        trie = self._trie

        @torch.no_grad()
        def search() -> None:
            leaves, scores = run(slot.weights, self._blocks, trie, bucket, inputs, keys, values)
            found[0].copy_(leaves)
            found[1].copy_(scores.view(torch.int32))

        program = Program(bucket, host, device, found, back, search)
        if self._stream is not None:
            program.graph = capture(search, self._stream, self._pool)
        return program

    def _cache_of(self, slot: Slot, bucket: Bucket) -> tuple[Tensor, Tensor]:
        """Keys and values, [layers, batch, key heads, positions, size]: views of one block that all programs share."""
        llama = slot.llama
        if self._cache is None:
            most = max(b.batch * b.positions(len(self._prefix)) for b in self.buckets)
            shape = (len(llama.layers) * llama.kv_heads * llama.size * most,)
            like = llama.layers[0].qkv
            self._cache = (
                torch.zeros(shape, dtype=like.dtype, device=like.device),
                torch.zeros(shape, dtype=like.dtype, device=like.device),
            )
        shape5 = (len(llama.layers), bucket.batch, llama.kv_heads, bucket.positions(len(self._prefix)), llama.size)
        keys, values = (held[: int(np.prod(shape5))].view(shape5) for held in self._cache)
        return keys, values


def stream_on(device: torch.device) -> "torch.cuda.Stream | None":
    """A stream of its own; None on what has none."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]  # torch


def capture(search: Callable[[], None], stream: "torch.cuda.Stream", pool: Any = None) -> "torch.cuda.CUDAGraph":
    """What `search` puts on the device, as a graph over the memory that it works on now."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_RUNS):
            search()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # thread_local: another thread may be loading the next model onto the device.
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        search()
    return graph


def input_size(bucket: Bucket) -> int:
    """Numbers in a program's block of inputs."""
    return bucket.batch * (LEVELS * EXCLUSIONS + _aligned(bucket.tokens) + 1)


def views(block: Tensor, bucket: Bucket) -> tuple[Tensor, Tensor, Tensor]:
    """tokens, lengths, dead of Inputs within a block."""
    batch, row = bucket.batch, _aligned(bucket.tokens)
    sizes = [LEVELS * batch * EXCLUSIONS, batch * row, batch]
    dead, tokens, lengths = torch.split(block, sizes)
    return tokens.view(batch, row)[:, : bucket.tokens], lengths, dead.view(LEVELS, batch, EXCLUSIONS)


def fill(block: NDArray[np.int32], bucket: Bucket, prompts: Prompts, trie: Trie | None) -> None:
    """Write the requests into a program's block of inputs; places beyond them hold prompts of one token.

    trie None: nothing is excluded.
    """
    tokens, lengths, dead = (part.numpy() for part in views(torch.from_numpy(block), bucket))
    tokens.fill(PAD)
    lengths.fill(1)
    for i, prompt in enumerate(prompts.tokens):
        tokens[i, : len(prompt)] = prompt
        lengths[i] = len(prompt)
    dead_lists(trie, prompts.excluded, dead)


def token_rows(backbone: Backbone) -> tuple[int, int]:
    """Which weights are the model's embedding and head."""
    model = backbone.model
    parts = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[no-untyped-call]  # transformers
    first, last = (id(part.weight) for part in parts)
    return first, last


def _aligned(count: int) -> int:
    return -(-count // 4) * 4
