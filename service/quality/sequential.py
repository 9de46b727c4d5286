"""Whether one live hit rate lies below another, asked again and again while the recommendations come in. Pure.

Each rate has an asymptotic confidence sequence: bounds that hold at all times together with probability 1 - alpha, so
one may look after every bucket and stop at the first that decides (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas,
"Time-uniform central limit theory and asymptotic confidence sequences", Annals of Statistics 2024, one-sided form of
the Gaussian-mixture boundary; Robbins 1970). Its time is the variance that has accrued, which is summed over users and
not over recommendations: what one user does within a bucket is one observation. Asymptotic: below the minimum of
recommendations nothing is decided.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from service.quality.figures import Sums

NOTHING = Sums()


class Control(StrEnum):
    """What keeps a worse time from being taken for a worse version."""

    CONCURRENT = "concurrent"
    """Both served in the same buckets, as arms of an experiment."""
    POPULARITY = "popularity"
    """One served after the other; each rate is divided by that of popular lists in its own buckets."""
    NONE = "none"
    """One served after the other: whatever else has changed counts as the version's doing."""


@dataclass(frozen=True, slots=True)
class Rules:
    """See the settings ADAPTIDE_ROLLBACK_*."""

    alpha: float
    margin: float
    minimum: int
    uncontrolled: bool = False


@dataclass(frozen=True, slots=True)
class Sides:
    """Two versions to compare. popular_*: of popular lists made in the buckets of each side."""

    challenger: Sums
    incumbent: Sums
    concurrent: bool = False
    popular_challenger: Sums = NOTHING
    popular_incumbent: Sums = NOTHING


@dataclass(frozen=True, slots=True)
class Decision:
    """fell: the challenger's rate is surely below the incumbent's less the margin. why: in words.

    at_most: bound on challenger / incumbent, once they could be compared; both divided by their control's rate where
    that is popularity. It falls below 1 - margin when the challenger fell.
    """

    fell: bool
    control: Control
    why: str
    at_most: float | None = None


def judge(sides: Sides, rules: Rules) -> Decision:
    """Compare at all that has been counted so far; alpha is shared equally by the bounds that are needed."""
    control = _control(sides, rules.minimum)
    least = min(sides.challenger.shown, sides.incumbent.shown)
    if least < rules.minimum:
        why = f"{least} counted recommendations on one side; {rules.minimum} are needed"
        return Decision(False, control, why)
    if control is Control.NONE and not rules.uncontrolled:
        why = "nothing controls for the time: fewer popular lists than are needed in the hours of one side"
        return Decision(False, control, why)
    paired = control is not Control.POPULARITY
    alpha = rules.alpha / (2 if paired else 4)
    above = upper(sides.challenger, alpha, rules.minimum)
    below = lower(sides.incumbent, alpha, rules.minimum)
    if not paired:
        above /= max(lower(sides.popular_challenger, alpha, rules.minimum), 1e-12)
        below /= upper(sides.popular_incumbent, alpha, rules.minimum)
    if below <= 0:
        return Decision(False, control, "the previous version's own rate is not known well enough yet")
    at_most, limit = above / below, 1 - rules.margin
    fell = at_most < limit
    why = f"its hit rate is at most {at_most:.3f} of the previous version's; it falls below {limit:g} to be rolled back"
    return Decision(fell, control, why, at_most)


def _control(sides: Sides, minimum: int) -> Control:
    if sides.concurrent:
        return Control.CONCURRENT
    enough = min(sides.popular_challenger.shown, sides.popular_incumbent.shown) >= minimum
    return Control.POPULARITY if enough else Control.NONE


def upper(sums: Sums, alpha: float, tightest_at: int) -> float:
    """The true rate lies below it at all times together with probability 1 - alpha."""
    return min(1.0, sums.hits / sums.shown + _radius(sums, alpha, tightest_at))


def lower(sums: Sums, alpha: float, tightest_at: int) -> float:
    """The true rate lies above it at all times together with probability 1 - alpha."""
    return max(0.0, sums.hits / sums.shown - _radius(sums, alpha, tightest_at))


def _radius(sums: Sums, alpha: float, tightest_at: int) -> float:
    """sd * sqrt(2 (n rho^2 + 1) / (n rho)^2 * log(1 + sqrt(n rho^2 + 1) / (2 alpha))) of n recommendations.

    sd^2 is the variance that each adds, users taken whole; rho makes the bound tightest around `tightest_at` of them
    (Waudby-Smith et al., appendix B.2, with 2 alpha for one side).
    """
    n = sums.shown
    spent = -2 * math.log(2 * alpha)
    rho2 = (spent + math.log(spent + 1)) / tightest_at
    scaled = n * rho2 + 1
    return math.sqrt(sums.spread / n * 2 * scaled / (n * n * rho2) * math.log(1 + math.sqrt(scaled) / (2 * alpha)))
