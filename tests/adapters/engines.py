"""A second, real implementation of the Engine protocol: a model scores every leaf with the sum of its weights."""

import threading
from collections.abc import Sequence

import numpy as np

from service.adapters.artifacts import VerifiedAdapter, VerifiedBase
from service.catalog.trie import Trie
from service.generation.engine import Generated, GenerationRequest


class SumModel:
    """`closed` counts calls; a generation after the first is a defect."""

    def __init__(self, base: VerifiedBase, adapter: VerifiedAdapter | None) -> None:
        self.base_id = base.base_id
        self.adapter_version = adapter.version if adapter else None
        self.total = float(sum(tensor.sum() for tensor in adapter.tensors.values())) if adapter else 0.0
        self.closed = 0

    def generate(self, requests: Sequence[GenerationRequest], trie: Trie) -> list[Generated]:
        assert not self.closed, "a closed model was asked"
        leaves = np.arange(trie.leaves, dtype=np.int64)
        return [
            Generated(leaves[: request.limit], np.full(len(leaves[: request.limit]), self.total, np.float32))
            for request in requests
        ]

    def close(self) -> None:
        self.closed += 1


class SumEngine:
    """Remembers what it loaded. `broken`: versions whose load fails as an engine's would. `hold`: loads wait for it."""

    def __init__(self) -> None:
        self.models: list[SumModel] = []
        self.tried = 0
        self.broken: set[str | None] = set()
        self.hold = threading.Event()
        self.hold.set()

    def load(self, base: VerifiedBase, adapter: VerifiedAdapter | None) -> SumModel:
        assert self.hold.wait(10)
        self.tried += 1
        if (adapter.version if adapter else None) in self.broken:
            raise RuntimeError("out of memory")
        self.models.append(SumModel(base, adapter))
        return self.models[-1]
