"""One request's beams over the trie in NumPy, for an engine that only says how probable the next codes are.

It keeps and orders what service.generation.beam keeps and orders: scores are added in float32, the better score comes
first, and of equal ones the one that is first in the trie below the better beam.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.catalog.trie import LEVELS, Trie
from service.kit.places import among, places_in_kind

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TrieBeam:
    """The beams after `depth` codes (0..4), best first.

    nodes: int64 [k], of that depth; at 4 they are leaves. codes: int64 [k, depth], what leads to them.
    scores: float32 [k], falling unless there is a penalty.
    """

    nodes: Int64
    codes: Int64
    scores: NDArray[np.float32]

    @property
    def depth(self) -> int:
        return int(self.codes.shape[1])

    def __len__(self) -> int:
        return len(self.nodes)

    def grow(
        self,
        trie: Trie,
        logp: NDArray[np.float32],
        dead: Int64,
        width: int,
        live: Int64 | None = None,
        penalty: float = 0.0,
    ) -> "TrieBeam":
        """The best `width` live children of all beams, fewer where there are no more.

        logp: float32 [k, 256], log-softmax over the next level's codes. dead: int64 [m], children that are left out.
        live: int64 [m], rising, the only children that may be taken; None: all. penalty: see GenerationRequest.
        """
        depth = self.depth
        first = trie.child_start[depth][self.nodes].astype(np.int64)
        counts = trie.child_start[depth][self.nodes + 1] - first
        parent = np.repeat(np.arange(len(self.nodes)), counts)
        before = np.cumsum(counts) - counts  # children of the beams before
        child = np.arange(len(parent)) - before[parent] + first[parent]
        if len(dead):
            kept = ~np.isin(child, dead)
            parent, child = parent[kept], child[kept]
        if live is not None:
            kept = among(child, live)
            parent, child = parent[kept], child[kept]
        code = trie.code[depth][child].astype(np.int64)
        scores = self.scores[parent] + logp[parent, code]
        lowered = scores
        if penalty:
            kind = self.codes[parent, 0] if depth else code
            lowered = scores - penalty * places_in_kind(scores, kind).astype(np.float64)
        best = np.argsort(-lowered, kind="stable")[:width]
        codes = np.concatenate([self.codes[parent[best]], code[best, None]], axis=1)
        return TrieBeam(child[best], codes, scores[best])


def root(trie: Trie) -> TrieBeam:
    """One beam above the first code; none over an empty trie."""
    count = min(trie.leaves, 1)
    return TrieBeam(np.zeros(count, np.int64), np.zeros((count, 0), np.int64), np.zeros(count, np.float32))


def dead_children(trie: Trie, excluded: Int64) -> tuple[Int64, ...]:
    """Per depth 1..4 the nodes whose leaves are all excluded. excluded: int64 [m], leaves, each once."""
    if not len(excluded):
        return (np.empty(0, np.int64),) * LEVELS
    return tuple(dead.node for dead in trie.dead_nodes(excluded))
