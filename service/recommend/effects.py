"""Which past items moved an item up: the list's scores after the history without each of them in turn.

A search within the leaves of a list that is as wide as they are many loses none of them, so its scores are those of the
one definition (DESIGN.md, idea 3), for every engine, and searches of this kind share batches with all others.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray

from service.catalog.index import CatalogueIndex
from service.catalog.trie import Int64
from service.generation.batching import Answer
from service.generation.engine import GenerationRequest
from service.recommend.compose import Ranked
from service.recommend.ranking import Float64
from service.recommend.schemas import FallbackReason

AT_ONCE = 2  # replies of a process that are explained so: each may put as many searches into the queue as a prompt has
LEAST = math.log(1.1)  # nats: less than a tenth more likely is not worth a sentence
NAMED = 2
TOGETHER = 8  # searches that are asked for at once: whoever comes next waits for so many at most

Generate = Callable[..., Awaitable[tuple[Answer | None, FallbackReason]]]
"""As Recommender.generate."""


@dataclass(frozen=True, slots=True, eq=False)
class Effects:
    """left_out: int64 [m], rows of the history, each once, latest first.

    scores: float64 [k], of a list's items after the whole history; without: float64 [m, k], after it without each row.
    """

    left_out: Int64
    scores: Float64
    without: Float64

    def sentences(self, index: CatalogueIndex, place: int) -> list[str]:
        """For the item at that place of the list (0-based): up to two past items without which it scores least."""
        drops = self.scores[place] - self.without[:, place]
        most = [j for j in np.argsort(-drops, kind="stable")[:NAMED].tolist() if drops[j] >= LEAST]
        return [self._sentence(index, j, place, float(drops[j])) for j in most]

    def _sentence(self, index: CatalogueIndex, j: int, place: int, drop: float) -> str:
        title = index.items[int(self.left_out[j])].title
        said = f"because of «{title}» from your history: without it this would be {_times(drop)} less likely"
        now, then = (_rank(scores, place) for scores in (self.scores, self.without[j]))
        if then > now and bool(np.all(np.diff(self.scores) <= 0)):  # else the list is not in the order of scores
            said += f", {ordinal(then)} in this list instead of {ordinal(now)}"
        return said


class LeaveOneOut:
    """Measures effects by the model in service, as many replies at a time as is good for all others."""

    def __init__(self, generate: Generate, timeout: timedelta, monotonic: Callable[[], float] = time.monotonic) -> None:
        """timeout: for one reply; 0: nothing is measured."""
        self._generate, self._monotonic = generate, monotonic
        self._timeout_s = timeout.total_seconds()
        self._inside = 0

    async def measure(
        self, index: CatalogueIndex, ranked: Ranked, prompt: Int64, due: float, *, candidate: bool = False
    ) -> Effects | None:
        """None when it cannot be had in time, or from the model that ranked. prompt: rows, oldest first.

        candidate: that of a trial ranked.
        """
        if not self._timeout_s or self._inside >= AT_ONCE or ranked.base_id is None or not len(ranked.rows.rows):
            return None
        left_out = np.array(list(dict.fromkeys(prompt[::-1].tolist())), dtype=np.int64)
        leaves, place = np.unique(index.trie.leaf_of_row[ranked.rows.rows].astype(np.int64), return_inverse=True)
        if leaves[0] < 0:
            return None
        due = min(due, self._monotonic() + self._timeout_s)
        requests = [
            GenerationRequest(index.codes[prompt[prompt != row]], len(leaves), leaves[:0], leaves) for row in left_out
        ]
        self._inside += 1
        try:
            answers: list[Answer | None] = []
            for first in range(0, len(requests), TOGETHER):
                part = requests[first : first + TOGETHER]
                found = await asyncio.gather(
                    *(self._generate(r, index, ranked.base_id, due, candidate=candidate) for r in part)
                )
                answers += [answer for answer, _ in found]
                if None in answers:
                    return None
        finally:
            self._inside -= 1
        without = _scores(answers, ranked, leaves)
        return None if without is None else Effects(left_out, ranked.rows.scores, without[:, place])


def _scores(answers: Sequence[Answer | None], ranked: Ranked, leaves: Int64) -> NDArray[np.float64] | None:
    """float64 [answers, leaves]; None unless all are there, of the model that ranked."""
    rows = []
    for answer in answers:
        if answer is None or (answer.base_id, answer.adapter_version) != (ranked.base_id, ranked.adapter_version):
            return None
        order = np.argsort(answer.generated.leaves)
        if not np.array_equal(answer.generated.leaves[order], leaves):
            return None
        rows.append(answer.generated.scores[order].astype(np.float64))
    return np.stack(rows) if rows else None


def _rank(scores: Float64, place: int) -> int:
    return 1 + int((scores > scores[place]).sum())


def _times(nats: float) -> str:
    if nats > math.log(1000):
        return "more than 1,000 times"
    times = math.exp(nats)
    return f"{times:.1f} times" if times < 10 else f"{times:.0f} times"


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
