"""What the index of valid semantic IDs costs at growing catalogues: to build, hold, change, search and exclude from."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from service.catalog.trie import CODES, LEVELS, build_trie
from service.catalog.trie_changes import changed_trie
from service.generation.beam import Beams, TrieTensors, expand, pruned
from trainer.turns import in_turns

REQUESTS, BEAMS, EXCLUDED = 64, 10, 500


@dataclass(frozen=True, slots=True)
class TrieRow:
    """build_s: one build. The others are medians over repeats.

    add_ms, hide_ms: the next trie from this one, with one item of new codes more and with one item less.
    mask_ms: the dearest of a search's four steps for 64 requests of 10 beams each, its choice of the best beams and
    500 exclusions a request included. exclude_ms: finding what 500 excluded items of one request prune.
    """

    items: int
    build_s: float
    bytes_per_item: float
    add_ms: float
    hide_ms: float
    mask_ms: float
    exclude_ms: float


def bench_trie(items: int, seed: int, *, repeats: int = 15) -> TrieRow:
    """items with random codes: the worst case, since few share a prefix."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, CODES, size=(items, LEVELS), dtype=np.int16)
    started = time.perf_counter()
    trie = build_trie(codes)
    built = time.perf_counter() - started
    changes = (
        (np.array([items]), codes[:1] ^ np.int16(1), items + 1),
        (np.array([items // 2]), np.full((1, LEVELS), -1, dtype=np.int16), items),
    )
    added, hidden = (_milliseconds(partial(changed_trie, trie, *change), repeats) for change in changes)
    device = torch.device("cpu")
    tensors = TrieTensors.of(trie, device)
    seen = [random.integers(0, items, size=EXCLUDED) for _ in range(REQUESTS)]
    excluded = [trie.excluded_leaves(own) for own in seen]
    dead = pruned(excluded, trie, device)
    root = torch.zeros(REQUESTS, 1, dtype=torch.long)
    beams = Beams(root, root, torch.zeros(REQUESTS, 1))
    steps = []
    with torch.inference_mode():
        for depth in range(LEVELS):
            logp = torch.log_softmax(torch.randn(REQUESTS, beams.nodes.shape[1], CODES), dim=-1)
            step = (tensors, depth, beams, logp, dead[depth], BEAMS)
            steps.append(_milliseconds(lambda step=step: expand(*step), repeats))  # type: ignore[misc]
            beams = expand(*step)
    exclude = _milliseconds(lambda: pruned([trie.excluded_leaves(seen[0])], trie, device), repeats)
    return TrieRow(items, built, trie.nbytes / items, added, hidden, max(steps), exclude)


def _milliseconds(run: Callable[[], object], repeats: int) -> float:
    return 1000 * statistics.median(in_turns([run], repeats)[0])
