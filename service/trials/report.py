"""How a candidate's lists compare with what was shown: overlap, order, and what users took afterwards. Pure.

Nobody saw the candidate's list in the shadow. What was shown is taken more often for being shown, so the comparison
leans towards control; what was taken without naming a recommendation (`organic`) leans less.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

NORMAL_95 = 1.959964
LEAST_USERS = 2  # of whom a spread can be told


@dataclass(frozen=True, slots=True)
class Judged:
    """One request: what was shown, what the candidate would have shown instead (canary: empty), and what the user took
    within the horizon. cluster: the user, or the request where nobody was named."""

    cluster: str
    shown: tuple[str, ...]
    shadow: tuple[str, ...]
    taken: frozenset[str]
    organic: frozenset[str]


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests after which the user took something, of how many users, and the share of them that was in the list."""

    requests: int
    users: int
    hits: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """difference: candidate less control, in hits a request; ci95: its 95 % interval over users, None for too few."""

    control: Rate
    candidate: Rate
    difference: float | None
    ci95: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class ShadowReport:
    """Over the same requests. overlap: mean share of the shown items that the candidate has in its list of that
    length. rank_shift: mean places by which an item in both lists moved. rank_correlation: mean Kendall's tau of the
    items in both. hits: on what users took; organic_hits: on what they took without naming a recommendation."""

    requests: int
    overlap: float | None
    rank_shift: float | None
    rank_correlation: float | None
    hits: Comparison
    organic_hits: Comparison


def of_shadow(judged: Sequence[Judged]) -> ShadowReport:
    """Paired: both lists of each request are held against the same events."""
    overlaps = [len(set(one.shown) & set(one.shadow)) / len(one.shown) for one in judged if one.shown]
    moved = [orders(one.shown, one.shadow) for one in judged]
    shifts = [float(np.abs(a - b).mean()) for a, b in moved if len(a)]
    taus = [kendall(a, b) for a, b in moved if len(a) > 1]
    return ShadowReport(
        len(judged),
        _mean(overlaps),
        _mean(shifts),
        _mean(taus),
        paired([(j.cluster, _hit(j.shown, j.taken), _hit(j.shadow, j.taken)) for j in judged if j.taken]),
        paired([(j.cluster, _hit(j.shown, j.organic), _hit(j.shadow, j.organic)) for j in judged if j.organic]),
    )


def of_canary(control: Iterable[Judged], canary: Iterable[Judged]) -> Comparison:
    """Of two groups of users at the same time, each held against what it was shown."""
    left, right = ([(j.cluster, _hit(j.shown, j.taken)) for j in arm if j.taken] for arm in (control, canary))
    return unpaired(left, right)


def orders(shown: Sequence[str], shadow: Sequence[str]) -> tuple["np.ndarray", "np.ndarray"]:
    """Places in both lists of the items that both have, in the order in which they were shown."""
    places = {item: place for place, item in enumerate(shadow)}
    both = [(place, places[item]) for place, item in enumerate(shown) if item in places]
    found = np.array(both, dtype=np.float64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def kendall(a: "np.ndarray", b: "np.ndarray") -> float:
    """Pairs in the same order less pairs in the other, over all pairs; no ties. Two items at least."""
    above = np.triu_indices(len(a), 1)
    agree = np.sign(np.subtract.outer(a, a)[above]) * np.sign(np.subtract.outer(b, b)[above])
    return float(agree.mean())


def paired(hits: Sequence[tuple[str, float, float]]) -> Comparison:
    """(cluster, control's, candidate's) of each request."""
    clusters = [cluster for cluster, _, _ in hits]
    one, two = _rate(clusters, [shown for _, shown, _ in hits]), _rate(clusters, [shadow for _, _, shadow in hits])
    if not hits:
        return Comparison(one, two, None, None)
    difference, deviation = _clustered([(cluster, after - before) for cluster, before, after in hits])
    return Comparison(one, two, difference, _interval(difference, deviation))


def unpaired(control: Sequence[tuple[str, float]], candidate: Sequence[tuple[str, float]]) -> Comparison:
    """(cluster, hit) of each request of either group; no user is in both."""
    one, two = (_rate([c for c, _ in arm], [hit for _, hit in arm]) for arm in (control, candidate))
    if not control or not candidate:
        return Comparison(one, two, None, None)
    (before, first), (after, second) = _clustered(control), _clustered(candidate)
    deviation = None if first is None or second is None else math.hypot(first, second)
    return Comparison(one, two, after - before, _interval(after - before, deviation))


def _clustered(values: Sequence[tuple[str, float]]) -> tuple[float, float | None]:
    """The mean, and its standard error with users as clusters (a ratio estimator's; None for fewer than two)."""
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for cluster, value in values:
        sums[cluster] += value
        counts[cluster] += 1
    mean = sum(sums.values()) / len(values)
    users = len(sums)
    if users < LEAST_USERS:
        return mean, None
    squares = sum((total - counts[cluster] * mean) ** 2 for cluster, total in sums.items())
    return mean, math.sqrt(squares * users / (users - 1)) / len(values)


def _interval(difference: float, deviation: float | None) -> tuple[float, float] | None:
    if deviation is None:
        return None
    return difference - NORMAL_95 * deviation, difference + NORMAL_95 * deviation


def _rate(clusters: Sequence[str], hits: Sequence[float]) -> Rate:
    return Rate(len(hits), len(set(clusters)), _mean(hits))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _hit(items: Sequence[str], taken: frozenset[str]) -> float:
    return float(not taken.isdisjoint(items))
