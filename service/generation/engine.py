"""What every generation engine is: something that loads a verified base and adapter and ranks items."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from service.adapters.artifacts import VerifiedAdapter, VerifiedBase
    from service.catalog.trie import Trie


@dataclass(frozen=True, slots=True, eq=False)
class GenerationRequest:
    """One user's question.

    history: int16 [n, 4], codes of the user's latest items, oldest first; n may be 0.
    limit: how many semantic IDs are wanted.
    excluded: int64 [m], slots of the trie (see Trie) that must not be returned.
    """

    history: NDArray[np.int16]
    limit: int
    excluded: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Generated:
    """Leaves of the trie in rank order.

    leaves: int64 [k], k = limit, or fewer only when fewer live leaves are left.
    scores: float32 [k], sum over the 4 levels of the log-softmax over that level's 256 codes, falling.
    """

    leaves: NDArray[np.int64]
    scores: NDArray[np.float32]


class ServedModel(Protocol):
    """One base with one adapter (or none), ready to answer. Immutable: a new adapter is a new ServedModel."""

    base_id: str
    adapter_version: str | None

    def generate(self, requests: Sequence[GenerationRequest], trie: "Trie") -> list[Generated]:
        """Constrained beam search for all requests at once, results in their order."""
        ...

    def close(self) -> None:
        """Free what the model holds. Called once, when no batch uses it any more."""
        ...


class Engine(Protocol):
    """Turns verified artifacts into served models."""

    def load(self, base: "VerifiedBase", adapter: "VerifiedAdapter | None") -> ServedModel:
        """Load beside whatever is being served. Raises ArtifactError when the parts do not fit."""
        ...
