"""What every generation engine is: something that loads a verified base and adapter and ranks items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

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
    within: int64 [m], rising, each once: only these slots may be returned; None: all. For a choice out of few what is
    left out would be nearly the whole catalogue.
    penalty: nats that a semantic ID loses for each better one with the same first code; 0: the plain search. The beams
    of every level are chosen by it, so with at least as many beams as leaves the order is exact: by
    score - penalty * (how many leaves with the same first code score better).
    """

    history: NDArray[np.int16]
    limit: int
    excluded: NDArray[np.int64]
    within: NDArray[np.int64] | None = None
    penalty: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Only exclusions: what a captured search can hold."""
        return self.within is None and not self.penalty

    @property
    def left(self) -> NDArray[np.int64] | None:
        """int64, rising: of `within` what is not excluded; None without it."""
        if self.within is None or not len(self.excluded):
            return self.within
        return np.setdiff1d(self.within, self.excluded, assume_unique=True)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The pass that a search was part of. The last bits of scores depend on its shape, not on what else was in it.

    size: prompts in it; place: which of them this one was; longest: items of the longest. by: engine, device, number
    type, threads and versions, one object for as long as they stay.
    """

    size: int
    place: int
    longest: int
    by: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Generated:
    """Leaves of the trie in rank order.

    leaves: int64 [k], k = limit, or fewer only when fewer live leaves are left.
    scores: float32 [k], sum over the 4 levels of the log-softmax over that level's 256 codes; falling, unless the
    request has a penalty, which orders the leaves and is not in their scores.
    """

    leaves: NDArray[np.int64]
    scores: NDArray[np.float32]
    batch: Batch | None = None
    """None from an engine that cannot say."""


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
