"""Whether a candidate may replace the incumbent: finite weights, enough users, and not worse on the same users.

The rule, on each scored user's NDCG@10 with both models (d = candidate - incumbent, one number per user):

1. any weight of the candidate is not finite                          -> refused, non_finite_weights
2. fewer than `min_users` users could be scored                        -> refused, too_few_users
3. the mean loss, relative to the incumbent's mean, exceeds `tolerance`,
   or the whole bootstrap interval of mean(d) lies below 0             -> refused, worse_than_incumbent

Otherwise it passes. So a loss within the tolerance passes only while chance can explain it, a larger one never does,
and a candidate that ranks exactly as the incumbent passes (d = 0, interval [0, 0]).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2_000  # the interval's ends then move by less than a tenth of its width between seeds
_BLOCK = 4_000_000  # draws held in memory at once


class Refusal(StrEnum):
    NON_FINITE_WEIGHTS = "non_finite_weights"
    TOO_FEW_USERS = "too_few_users"
    WORSE_THAN_INCUMBENT = "worse_than_incumbent"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Candidate against incumbent on the same users.

    difference: mean(candidate) - mean(incumbent); low, high: its bootstrap interval; relative_loss: -difference /
    mean(incumbent), 0 when the incumbent scores 0 everywhere (nothing can be lost); identical: no user differs.
    """

    users: int
    candidate: float
    incumbent: float
    difference: float
    low: float
    high: float
    confidence: float
    relative_loss: float
    identical: bool

    def as_json(self) -> dict[str, float | int | bool | list[float]]:
        """For the evaluations table."""
        return {
            "users": self.users,
            "candidate": self.candidate,
            "incumbent": self.incumbent,
            "difference": self.difference,
            "interval": [self.low, self.high],
            "confidence": self.confidence,
            "relative_loss": self.relative_loss,
            "identical": self.identical,
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reasons` is empty exactly when the candidate passed; `comparison` is None when no user could be scored."""

    reasons: tuple[Refusal, ...]
    comparison: Comparison | None

    @property
    def passed(self) -> bool:
        return not self.reasons


def judge(
    candidate: ArrayLike,
    incumbent: ArrayLike,
    *,
    weights_finite: bool,
    min_users: int,
    tolerance: float,
    confidence: float,
    seed: int,
) -> Verdict:
    """Apply the rule above. candidate, incumbent: NDCG@10 [users], the same users in the same order.

    Raises ValueError when the two are not equally long vectors of finite numbers.
    """
    reasons = [] if weights_finite else [Refusal.NON_FINITE_WEIGHTS]
    theirs, ours = _vector(incumbent), _vector(candidate)
    if ours.shape != theirs.shape:
        raise ValueError(f"{len(ours)} candidate and {len(theirs)} incumbent scores: they must be of the same users")
    comparison = compare(ours, theirs, confidence=confidence, seed=seed) if len(ours) else None
    if len(ours) < min_users:
        reasons.append(Refusal.TOO_FEW_USERS)
    elif comparison is not None:
        # A hair above the tolerance, so that a loss of exactly it is not refused for rounding.
        beyond = comparison.relative_loss > tolerance + 1e-9
        if beyond or comparison.high < 0:
            reasons.append(Refusal.WORSE_THAN_INCUMBENT)
    return Verdict(tuple(reasons), comparison)


def compare(
    candidate: NDArray[np.float64], incumbent: NDArray[np.float64], *, confidence: float, seed: int
) -> Comparison:
    """Means, their difference and its interval; see Comparison. Both float64 [users], at least one user."""
    differences = candidate - incumbent
    low, high = paired_bootstrap(differences, confidence=confidence, seed=seed)
    difference, theirs = float(differences.mean()), float(incumbent.mean())
    return Comparison(
        users=len(differences),
        candidate=float(candidate.mean()),
        incumbent=theirs,
        difference=difference,
        low=low,
        high=high,
        confidence=confidence,
        relative_loss=-difference / theirs if theirs > 0 else 0.0,
        identical=not differences.any(),
    )


def paired_bootstrap(
    differences: NDArray[np.float64], *, confidence: float, resamples: int = RESAMPLES, seed: int
) -> tuple[float, float]:
    """Percentile interval of the mean of `differences` (float64 [users]), users drawn with replacement.

    The same seed and input give the same interval.
    """
    users, random = len(differences), np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, _BLOCK // users)
    for start in range(0, resamples, block):
        stop = min(start + block, resamples)
        means[start:stop] = differences[random.integers(users, size=(stop - start, users))].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def all_finite(weights: Mapping[str, NDArray[np.floating]]) -> bool:
    """Whether every number of every tensor is finite."""
    return all(bool(np.isfinite(tensor).all()) for tensor in weights.values())


def _vector(scores: ArrayLike) -> NDArray[np.float64]:
    vector = np.asarray(scores, dtype=np.float64)
    if vector.ndim != 1 or not all(map(math.isfinite, vector)):
        raise ValueError("scores must be one finite number per user")
    return vector
