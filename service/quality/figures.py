"""What buckets are made of, how they add up, and what is read off them. Pure."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

from service.quality.sketch import REGISTERS, distinct, sketch, union


def gain(item_ids: Sequence[str], taken: Collection[str]) -> float:
    """Sum of 1 / log2(rank + 1) over the items of the list that were taken; the first rank is 1."""
    return sum(1 / math.log2(rank + 1) for rank, item_id in enumerate(item_ids, 1) if item_id in taken)


@dataclass(frozen=True, slots=True)
class Sums:
    """Counts of recommendations that add up over buckets, with what their spread over users needs.

    shown_squares, shown_hits, hit_squares: sums over users of n^2, n * h and h^2, where a user was shown n
    recommendations with h hits within one bucket. One made for nobody counts as a user of its own.
    """

    shown: int = 0
    hits: int = 0
    shown_squares: int = 0
    shown_hits: int = 0
    hit_squares: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(getattr(self, name) + getattr(other, name) for name in Sums.__dataclass_fields__))

    @classmethod
    def of_users(cls, users: Iterable[tuple[int, int]]) -> "Sums":
        """users: (shown, hits) of each."""
        total = [0] * 5
        for shown, hits in users:
            for place, value in enumerate((shown, hits, shown * shown, shown * hits, hits * hits)):
                total[place] += value
        return cls(*total)

    @property
    def rate(self) -> float | None:
        return self.hits / self.shown if self.shown else None

    @property
    def spread(self) -> float:
        """The variance of `hits` as a sum of independent users, sum over users of (h - rate * n)^2.

        At least what it would be with a hit and a miss more and every recommendation on its own: none or nothing but
        hits so far is not certainty.
        """
        if not self.shown:
            return 0.0
        shrunk = (self.hits + 1) / (self.shown + 2)
        return max(self._clustered(self.hits / self.shown), self.shown * shrunk * (1 - shrunk))

    def _clustered(self, rate: float) -> float:
        return self.hit_squares - 2 * rate * self.shown_hits + rate * rate * self.shown_squares

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """Wilson's interval for the rate at the effective number of recommendations: shown over the design effect.

        Recommendations of one user within a bucket count as one cluster (Kish 1965; Korn and Graubard 1998).
        """
        if not self.shown:
            return None
        rate = self.hits / self.shown
        alone = rate * (1 - rate) * self.shown
        n = self.shown / max(1.0, self._clustered(rate) / alone) if alone else self.shown**2 / self.shown_squares
        z = NormalDist().inv_cdf(0.5 + confidence / 2)
        centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True, slots=True)
class Counts:
    """One row of quality_buckets without its key, or several rows added up (see service.quality.tables)."""

    sums: Sums = field(default_factory=Sums)
    gain: float = 0.0
    users: int = 0
    anonymous: int = 0
    items: int = 0
    distinct_items: int = 0
    item_sketch: bytes = bytes(REGISTERS)
    catalogue: int = 0
    novelty: float = 0.0
    novelty_items: int = 0
    repeated: int = 0
    repeatable: int = 0

    @classmethod
    def total(cls, buckets: Sequence["Counts"]) -> "Counts":
        """Of several buckets: users are those of each, added up; distinct items are estimated from the sketches."""
        if len(buckets) == 1:
            return buckets[0]
        seen = union([one.item_sketch for one in buckets])
        return cls(
            sums=sum((one.sums for one in buckets), Sums()),
            gain=sum(one.gain for one in buckets),
            users=sum(one.users for one in buckets),
            anonymous=sum(one.anonymous for one in buckets),
            items=sum(one.items for one in buckets),
            distinct_items=round(distinct(seen)),
            item_sketch=seen,
            catalogue=max((one.catalogue for one in buckets), default=0),
            novelty=sum(one.novelty for one in buckets),
            novelty_items=sum(one.novelty_items for one in buckets),
            repeated=sum(one.repeated for one in buckets),
            repeatable=sum(one.repeatable for one in buckets),
        )


class Surprises:
    """item -> -log2 of its share of all interactions, in bits."""

    def __init__(self, log2_weights: Mapping[str, float]) -> None:
        """log2_weights: of every item that was counted. One that was not is taken to be as rare as the rarest."""
        self._weights, self._total, self._least = log2_weights, 0.0, 0.0
        if log2_weights:
            most, self._least = max(log2_weights.values()), min(log2_weights.values())
            self._total = most + math.log2(sum(2.0 ** (weight - most) for weight in log2_weights.values()))

    def of(self, item_ids: Iterable[str]) -> list[float]:
        """In their order; nothing when nothing was counted."""
        if not self._weights:
            return []
        return [self._total - self._weights.get(item_id, self._least) for item_id in item_ids]


class Tally:
    """Counts one model's recommendations of one bucket, one after the other."""

    def __init__(self) -> None:
        self._users: dict[str, list[int]] = {}
        self._alone = Sums()
        self._items: set[str] = set()
        self._anonymous = self._places = self._repeated = self._repeatable = self._novelty_places = 0
        self._gain = self._novelty = 0.0

    def add(
        self,
        user_id: str | None,
        item_ids: Sequence[str],
        taken: Collection[str],
        previous: Collection[str] | None,
        surprises: Surprises,
    ) -> None:
        """taken: items that events are credited for; previous: what the user was shown before, None if not known."""
        hit = bool(taken)
        if user_id is None:
            self._anonymous += 1
            self._alone += Sums(1, hit, 1, hit, hit)
        else:
            own = self._users.setdefault(user_id, [0, 0])
            own[0] += 1
            own[1] += hit
        self._gain += gain(item_ids, taken)
        self._items.update(item_ids)
        self._places += len(item_ids)
        known = surprises.of(item_ids)
        self._novelty += sum(known)
        self._novelty_places += len(known)
        if previous is not None:
            self._repeatable += len(item_ids)
            self._repeated += sum(item_id in previous for item_id in item_ids)

    def counts(self, catalogue: int) -> Counts:
        """catalogue: how many items could be recommended."""
        return Counts(
            sums=self._alone + Sums.of_users((shown, hits) for shown, hits in self._users.values()),
            gain=self._gain,
            users=len(self._users),
            anonymous=self._anonymous,
            items=self._places,
            distinct_items=len(self._items),
            item_sketch=sketch(self._items),
            catalogue=catalogue,
            novelty=self._novelty,
            novelty_items=self._novelty_places,
            repeated=self._repeated,
            repeatable=self._repeatable,
        )
